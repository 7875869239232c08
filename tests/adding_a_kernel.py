#!/usr/bin/env python3
"""Applies the code blocks of docs/adding_a_kernel.md to a copy of the tree, builds it and runs the new cases.

usage: adding_a_kernel.py SOURCE_DIR WORK_DIR [cmake arguments]

Blocks with file=PATH are written to that path, diff blocks are applied with `git apply`. Exit 0 where the new
implementations were built and their cases passed (or, for the CUDA one without a GPU, said they were skipped).
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys


def run(command, **kwargs):
    print("+", " ".join(map(str, command)), flush=True)
    subprocess.run([str(c) for c in command], check=True, **kwargs)


def copy_tree(source, target):
    skip = shutil.ignore_patterns("build*", ".git", ".venv", "runs", "results", "__pycache__", ".carry")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=skip)


def apply_page(page, target):
    text = page.read_text()
    written = 0
    for info, body in re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.S | re.M):
        path = re.search(r"file=(\S+)", info)
        if path:
            (target / path.group(1)).write_text(body)
            written += 1
        elif info.strip() == "diff":
            patch = target / "page.diff"
            patch.write_text(body)
            # A repository of its own, so that `git apply` does not look for one above the copy.
            run(["git", "init", "-q", "."], cwd=target)
            run(["git", "apply", "-p1", patch.name], cwd=target)
            written += 1
    assert written >= 3, f"{page} has {written} applicable blocks, expected 3 or more"


def case_counts(report):
    counts = {}
    for suite in json.loads(report.read_text())["testsuites"]:
        for case in suite["testsuite"]:
            name = f"{suite['name']}.{case['name']}"
            impl = next((i for i in ("two_a_thread", "cpu_max") if i in name), None)
            if impl and case.get("status") != "NOTRUN":
                result = "failed" if case.get("failures") else case["result"].lower()
                counts.setdefault(impl, {}).setdefault(result, 0)
                counts[impl][result] += 1
    return counts


def main():
    source, work = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    tree, build = work / "tree", work / "build"
    work.mkdir(parents=True, exist_ok=True)
    copy_tree(source, tree)
    apply_page(source / "docs" / "adding_a_kernel.md", tree)
    run(["cmake", "-S", tree, "-B", build, "-G", "Ninja", "-DKILN_OPS=activation", "-DKILN_BENCH=OFF",
         "-DKILN_PEERS=OFF", *sys.argv[3:]])
    run(["cmake", "--build", build, "--target", "test_activation"], env={**os.environ, "CCACHE_BASEDIR": str(tree)})
    report = work / "report.json"
    run([build / "bin" / "tests" / "test_activation", "--gtest_filter=*two_a_thread*:*cpu_max*", "--gtest_brief=1",
         f"--gtest_output=json:{report}"])
    counts = case_counts(report)
    print(counts)
    assert counts.get("cpu_max", {}).get("completed", 0) >= 10, "the CPU implementation's cases did not run"
    has_cuda = "KILN_WITH_CUDA" in (build / "build.ninja").read_text()
    if has_cuda:
        cuda = counts.get("two_a_thread", {})
        assert cuda.get("completed", 0) + cuda.get("skipped", 0) >= 10, "the CUDA implementation has no cases"


if __name__ == "__main__":
    main()
