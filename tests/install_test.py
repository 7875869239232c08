#!/usr/bin/env python3
"""Installs a build into a folder of its own, builds docs/examples/find_package against it and runs the result.

usage: install_test.py SOURCE_DIR BUILD_DIR WORK_DIR CMAKE CXX_COMPILER

The example is built with warnings as errors. A second program includes every installed header.
"""
import pathlib
import re
import shutil
import subprocess
import sys

HEADERS_CMAKE = """
add_executable(headers headers.cpp)
target_link_libraries(headers PRIVATE {targets})
"""


def run(command, **kwargs):
    command = [str(c) for c in command]
    print("+", " ".join(command), flush=True)
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)
    if result.returncode != 0:
        sys.exit(f"{result.stdout}\ninstall_test: the command above ended with status {result.returncode}")
    return result.stdout


def add_headers_program(example, prefix):
    """Adds a program that includes all installed headers and links every library of the package."""
    include = prefix / "include" / "kiln"
    headers = sorted(str(path.relative_to(include)) for path in include.rglob("*.h"))
    assert "kernels/conv2d/conv2d.h" in headers, f"no kernels/conv2d/conv2d.h under {include}"
    targets = ["kiln::kernels", "kiln::cpu"]
    if (include / "nn").is_dir():
        assert {"nn/trainer.h", "data/dataset.h"} <= set(headers), headers
        targets += ["kiln::nn", "kiln::data"]
    (example / "headers.cpp").write_text("".join(f'#include "{header}"\n' for header in headers) + "int main() {}\n")
    with open(example / "CMakeLists.txt", "a") as lists:
        lists.write(HEADERS_CMAKE.format(targets=" ".join(targets)))


def main():
    source, build, work = (pathlib.Path(argument).resolve() for argument in sys.argv[1:4])
    cmake, compiler = sys.argv[4:6]
    shutil.rmtree(work, ignore_errors=True)
    prefix, example = work / "prefix", work / "example"
    run([cmake, "--install", build, "--prefix", prefix])

    shutil.copytree(source / "docs" / "examples" / "find_package", example)
    add_headers_program(example, prefix)
    run([cmake, "-S", example, "-B", example / "build", f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCMAKE_CXX_COMPILER={compiler}",
         "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"])
    run([cmake, "--build", example / "build"])
    output = run([example / "build" / "conv"])
    assert re.fullmatch(r"cpu_\w+: y\[1\]\[1\] = 45\n", output), output

    programs = sorted(path.name for path in (prefix / "bin").glob("*")) if (prefix / "bin").is_dir() else []
    if "kiln" in programs:
        assert run([prefix / "bin" / "kiln", "--version"]).strip(), "kiln --version printed nothing"
    assert list(prefix.glob("share/doc/kiln/docs/guide.md")), "docs are not installed"
    print("installed:", ", ".join(programs) or "no programs", "| example:", output.strip())


if __name__ == "__main__":
    main()
