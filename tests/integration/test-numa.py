#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Weights lie on the nodes of the workers that multiply them, on a machine that has two.

Boots a kernel in qemu with two nodes of two CPUs and 512 MiB each, runs moe-eval there on all four
with a demo model, and looks at its pages in numa_maps while it generates. Its logits are those of
one worker, whose weights are all on one node. So it is when a later start maps an image of them.

Wants qemu-system-x86_64, busybox, cpio, and a kernel that is $MOE_TEST_KERNEL or the newest
/boot/vmlinuz-*; without them it is skipped. test-numa.py MOE_EVAL MODEL
"""
import glob
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

EVAL, MODEL = sys.argv[1:3]
PAGE = 4096
INIT = """#!/bin/busybox sh
PATH=/bin
busybox mkdir -p /proc /sys /dev
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs dev /dev
run() { moe-eval /model.gguf --ids 2,5,9,14 --greedy 24 --threads $1 --logits /logits.$2 $3; }
# Keep the last lines of its numa_maps that have $1 as /$2, and which CPUs its threads may use.
watch() {
    while busybox kill -0 $! 2>/dev/null; do
        pid=$(busybox pidof moe-eval) && busybox grep $1 /proc/$pid/numa_maps >/now 2>/dev/null &&
            busybox mv /now /$2 &&
            busybox grep -h Cpus_allowed_list /proc/$pid/task/*/status >/now 2>/dev/null &&
            busybox mv /now /cpus
        busybox usleep 100000
    done
    wait $!
    busybox echo "guest: exit $?"
}
run 1 1
run 4 4 &
watch prefer maps
busybox cmp /logits.1 /logits.4 >/differ 2>&1 && busybox echo "guest: same logits"
busybox mkdir /cache
busybox mount -t tmpfs tmpfs /cache
run 4 kept "--cache-dir /cache"
run 4 image "--cache-dir /cache" &
watch [.]weights image
busybox cmp /logits.1 /logits.image >/differ 2>&1 && busybox echo "guest: same logits from the image"
for f in maps image cpus; do busybox sed "s/^/guest: $f: /" /$f; done
busybox poweroff -f
"""


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


def find_kernel():
    kernels = [os.environ["MOE_TEST_KERNEL"]] if "MOE_TEST_KERNEL" in os.environ else sorted(
        glob.glob("/boot/vmlinuz-*"), key=os.path.getmtime)
    kernels = [k for k in kernels if os.access(k, os.R_OK)]
    return kernels[-1] if kernels else skip("no kernel to boot: $MOE_TEST_KERNEL or /boot/vmlinuz-*")


def libraries(program):
    """Everything the dynamic loader would load, the loader too; nothing for a static program."""
    text = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    return re.findall(r"(/[^ )]+) \(0x", text)


def make_initrd(folder, busybox):
    root = folder / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    shutil.copy(EVAL, root / "bin/moe-eval")
    shutil.copy(MODEL, root / "model.gguf")
    for lib in libraries(busybox) + libraries(EVAL):
        (root / lib[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(lib, root / lib[1:])
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    names = "\n".join(str(p.relative_to(root)) for p in root.rglob("*"))
    with open(folder / "initrd", "wb") as out:
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=names.encode(), stdout=out, check=True)
    return folder / "initrd"


def boot(kernel, initrd):
    """Return: what the guest says, by file."""
    node = lambda i: ["-object", f"memory-backend-ram,id=m{i},size=512M",
                      "-numa", f"node,nodeid={i},cpus={2 * i}-{2 * i + 1},memdev=m{i}"]
    p = subprocess.run(["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max",
                        "-smp", "4,sockets=2,cores=2,threads=1", "-m", "1G", *node(0), *node(1),
                        "-numa", "dist,src=0,dst=1,val=32", "-kernel", kernel, "-initrd", str(initrd),
                        "-append", "console=ttyS0 quiet panic=-1", "-display", "none", "-serial", "stdio",
                        "-monitor", "none", "-no-reboot", "-nodefaults"],
                       capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=1200)
    said = {"maps": [], "image": [], "cpus": []}
    for name, line in re.findall(r"^guest: (maps|image|cpus): (.*?)\r?$", p.stdout, re.M):
        said[name].append(line)
    for line in "exit 0", "same logits", "same logits from the image":
        assert re.search(rf"^guest: {line}\r?$", p.stdout, re.M), p.stdout[-4000:] + p.stderr
    return said


def count_pages(maps):
    """Pages by node. A bound mapping has pages of its node alone."""
    pages = {0: 0, 1: 0}
    for line in maps:
        bound = re.search(r"prefer(?:=\w+)?:(\d+)", line)
        for node, n in re.findall(r" N(\d+)=(\d+)", line):
            assert not bound or node == bound[1], f"pages of node {node}: {line}"
            pages[int(node)] += int(n)
    print("pages:", pages)
    return pages


def check_pages(packed, image):
    """The nodes have as many, all weights together. An image's are bound by nothing but for whom they
    were first needed; up to where the other node's begin there is a gap, which is the first node's."""
    assert abs(packed[0] / packed[1] - 1) < 0.05, packed  # units, and huge pages that are not full
    assert (packed[0] + packed[1]) * PAGE > 0.9 * os.path.getsize(MODEL), packed
    assert abs(image[1] / packed[1] - 1) < 0.05, image
    assert image[0] > 0.95 * packed[0], image


def main():
    if os.uname().machine != "x86_64":
        skip("not an x86_64 machine")
    kernel = find_kernel()
    busybox = shutil.which("busybox")
    for tool in "qemu-system-x86_64", "busybox", "cpio", "ldd":
        if not shutil.which(tool):
            skip(f"no {tool}")
    with tempfile.TemporaryDirectory() as d:
        said = boot(kernel, make_initrd(pathlib.Path(d), busybox))
    print("\n".join(said["maps"] + said["image"] + said["cpus"]))
    check_pages(count_pages(said["maps"]), count_pages(said["image"]))
    cpus = sorted(line.split()[-1] for line in said["cpus"])
    assert cpus == ["0", "1", "2", "3"], cpus


main()
