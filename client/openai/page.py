# SPDX-License-Identifier: Apache-2.0
"""A file as an array in C: page.py FILE"""
import pathlib
import sys

data = pathlib.Path(sys.argv[1]).read_bytes()
rows = (", ".join(map(str, data[i : i + 24])) for i in range(0, len(data), 24))
print("/* SPDX-License-Identifier: Apache-2.0 */\n")
print('#include "client/openai/bridge.h"\n')
print("const unsigned char http_page[] = {\n    " + ",\n    ".join(rows) + "\n};")
print("const size_t http_page_size = sizeof http_page;")
