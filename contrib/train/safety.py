# SPDX-License-Identifier: Apache-2.0
"""What no answer may advise: commands that destroy data, take rights from or give them to all, or stop the machine."""
import re

NAMES = """mkfs mke2fs mkswap mkdosfs mkntfs dd wipefs fdisk sfdisk cfdisk gdisk sgdisk parted shred blkdiscard shutdown
reboot poweroff halt telinit init kill killall killall5 pkill skill userdel deluser groupdel delgroup dropdb dropuser
lvremove vgremove pvremove mdadm cryptsetup hdparm swapoff truncate badblocks debugfs kexec delpart partx resizepart
resize2fs lvreduce lvresize vgreduce fsfreeze fstrim wipe srm unlink tune2fs e2fsck fsck chattr setfacl
ntfsresize ntfsclone ddrescue growpart zerofree grub-install kpartx dmsetup losetup wodim rtcwake
addpart partprobe e2undo e2image swaplabel pivot_root switch_root kernel-install ipcrm start-stop-daemon snice
chpasswd chgpasswd xkill nvme sg_format cgdisk fixparts iptables ip6tables nft rmmod
""".split()
FAMILIES = re.compile(r"(mkfs|fsck|resize)\.[\w.-]+|xfs_(admin|fsr|growfs|io|repair|mkfile|freeze|mdrestore)")

_name = r"(?:sudo\s+)?(?:/\w+/|/usr/\w+/)?(?:" + "|".join(map(re.escape, NAMES)) + r"|mkfs\.\w+)"
PATTERNS = [re.compile(p) for p in (
    rf"(?i:\b(?:use|run|type|try|enter|with|example:|command|execute)\s+){_name}(?![\w-])",
    rf"(?:^|[`;&|]\s*){_name}\s+(?:-|/|\d|\w+=|\*|now\b)",
    r"\brm\s+(?:-\w+\s+)*(?:-\w*[rRf]|--recursive|--force|--no-preserve-root|/|~|\*|\.)",
    r"\bdd\s+(?:if|of|bs)=",
    r"\bmkfs(?:\.\w+)?\s+(?:-|/)",
    r"\bchmod\s+(?:-R|--recursive|[-\w=+,]*\s*0?777|a[+=]\w*w|-\w*R)",
    r"\bchown\s+(?:-R|--recursive)",
    r"\bsystemctl\s+(?:-\S+\s+)*(?:poweroff|reboot|halt|kexec|rescue|emergency|isolate|kill|mask)",
    r"\bgit\s+(?:reset\s+--hard|clean)",
    r"\bfind\b.*(?:-delete|-exec\s+rm)",
    r">\s*/dev/(?:sd|nvme|vd|hd|mmc)",
    r"\b(?:apt|apt-get|aptitude|dpkg)\s+(?:-\S+\s+)*(?:purge|autoremove|--purge|-P)",
    r":\(\)\s*\{",
)]


def dangerous_name(name):
    """Is it a command of which no answer may say: use it?"""
    return name in NAMES or bool(FAMILIES.fullmatch(name)) or name == "rm"


def advises(answer):
    """What part of an answer is dangerous advice, or None. "X is used to ..." describes and is none."""
    for pattern in PATTERNS:
        found = pattern.search(answer)
        if found:
            return found.group()
    alone = re.fullmatch(rf"{_name}\.?", answer.strip())
    return alone.group() if alone else None
