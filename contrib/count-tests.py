#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Add up what meson recorded of the last test run of each build directory.

count-tests.py BUILD_DIR...     names what failed or was skipped, ends with one line of counts
"""
import json
import pathlib
import sys

GOOD, SKIP = {"OK", "EXPECTEDFAIL"}, {"SKIP"}


def main(dirs: list[str]) -> int:
    count = {"passed": 0, "failed": 0, "skipped": 0}
    for d in dirs:
        log = pathlib.Path(d) / "meson-logs" / "testlog.json"
        for line in log.read_text().splitlines():
            test = json.loads(line)
            kind = "passed" if test["result"] in GOOD else "skipped" if test["result"] in SKIP else "failed"
            count[kind] += 1
            if kind != "passed":
                reason = [s for s in test.get("stdout", "").splitlines() if s.strip()][-1:]
                print(f'{kind}: {d}: {test["name"]}' + (f": {reason[0]}" if reason else ""))
    print(f'{count["passed"]} passed, {count["failed"]} failed, {count["skipped"]} skipped')
    return 1 if count["failed"] or not count["passed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
