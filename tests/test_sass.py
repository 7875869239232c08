#!/usr/bin/env python3
"""What the compiler made of the kernels: no register spilled, HGMMA where wgmma is meant, fences before the copy engine,
waits in kernels that are launched early.

    python3 tests/test_sass.py BUILD [--json OUT]

Reads BUILD/libkiln_kernels.a with cuobjdump and, for the machine code, nvdisasm beside it: the one that KILN_CUOBJDUMP
names, on PATH, of the CUDA Toolkit, or of the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm. Where there is
none, or no CUDA code, the test is skipped by name. --json writes the counts (scripts/gpu_check evidence).

The fence: what ordinary stores wrote into shared memory the copy engine and wgmma may read only after fence.proxy.async.
On no path through a kernel's machine code may a store into shared memory reach a copy out of it, or a product that reads
what was stored, without that fence and then a barrier between.
tests/proxy_fence.cu holds a kernel with the fence and one without, on which this rule is tried first.

The wait: a kernel that may start before the launch ahead of it has ended (kernels/common/early_launch.cuh) touches global
memory, or ends, on no path before it has waited.
"""
import collections
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import site
import subprocess
import sys
import unittest

TO_JSON = sys.argv[sys.argv.index("--json") + 1] if "--json" in sys.argv else None
BUILD = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "build/release").resolve()
LIBRARY = BUILD / "libkiln_kernels.a"
# In the files of wgmma kernels, what adds up partial sums afterwards and multiplies nothing.
NO_PRODUCT = ("conv2d_column_merge_kernel", "sum_rows_kernel", "sum_splits_kernel")
INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?(\S+)\s*(.*?)\s*;")
# Files whose products read what TMA brought and nothing else: their stores go to staging tiles of results, which threads
# read back. In all others a store must be fenced before the products, too.
RESULTS_STAGED = ("conv2d_dgrad_wgmma", "conv2d_dgrad_wgmma_halo", "conv2d_dgrad_wgmma_parity", "conv2d_fwd_wgmma",
                  "conv2d_fwd_wgmma_halo", "linear_dgrad_wgmma", "linear_fwd_wgmma")
# Kernels of which the same is true in whatever file they are compiled: the halo kernel stands in those of wgmma_pixel, too,
# which compare its cost; a block of wgrad either exchanges sums with its neighbour, behind its last product, or goes on to
# another tile, never both.
RESULTS_STAGED_KERNELS = ("conv2d_halo_wgmma_kernel", "conv2d_wgrad_wgmma_kernel")
FENCE = "FENCE.VIEW.ASYNC"
BARRIERS = re.compile(r"BAR\.|WARPSYNC|SYNCS\.ARRIVE|UCGABAR_ARV")
PRODUCTS = re.compile(r"HGMMA.*BF16")
COPIES_OUT = re.compile(r"UTMASTG|UTMAREDG|UBLKCP\.G\.S|UBLKRED\.G\.S")
WAIT = "ACQBULK"
GLOBAL = re.compile(r"LDG|STG|ATOMG|RED\b|REDG|UTMALDG|UTMASTG|UTMAREDG|UBLKCP|UBLKRED|LD\.E|ST\.E")
# Kernels that run through their code once before they wait, with their loads left out by a predicate.
REHEARSING = ("conv2d_column_merge_kernel",)
# Kernels that are launched early, if only for some problems, and the files of such kernels that are no code for sm_90a alone.
EARLY = ("conv2d_column_merge_kernel", "conv2d_deep_wgmma_kernel", "conv2d_dgrad_slab_wgmma_kernel",
         "conv2d_fwd_register_tma_kernel", "conv2d_pointwise_kernel", "conv2d_wgrad_stream_kernel",
         "conv2d_wgrad_wgmma_kernel", "depthwise_conv2d_wgrad_sum_kernel", "linear_sum_splits_kernel", "sum_splits_kernel")
EARLY_PORTABLE = ("conv2d_dgrad_direct", "conv2d_fwd_direct", "depthwise_conv2d_wgrad_sum", "linear_sum_splits")
STORES = re.compile(r"STS|STSM|STAS|ATOMS|ST\.|ST$")  # ST, STAS: into another block of the cluster


def skip(why):  # the word makes ctest skip it, too
    print(f"SKIPPED: test_sass: {why}")
    sys.exit(0)


def find_tool():
    """cuobjdump's path, or None."""
    named = os.environ.get("KILN_CUOBJDUMP")
    if named:
        return named
    folders = [pathlib.Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"]
    nvcc = shutil.which("nvcc")
    folders += [pathlib.Path(nvcc).resolve().parent] if nvcc else []
    for packages in [*site.getsitepackages(), site.getusersitepackages(), *BUILD.parent.glob("venv/lib/python*/site-packages")]:
        folders += sorted(pathlib.Path(packages).glob("nvidia/cu*/bin"), reverse=True)
    tools = [str(f / "cuobjdump") for f in folders if os.access(f / "cuobjdump", os.X_OK)]
    return shutil.which("cuobjdump") or (tools[0] if tools else None)


def dump(file, *arguments):
    path = os.pathsep.join([str(pathlib.Path(CUOBJDUMP).parent), os.environ.get("PATH", "")])
    done = subprocess.run([CUOBJDUMP, *arguments, str(file)], capture_output=True, text=True,
                          env={**os.environ, "PATH": path})
    if done.returncode != 0:
        raise RuntimeError(f"cuobjdump {' '.join(arguments)} {file}: {done.stderr[-500:]}")
    return done.stdout


def kernel_name(mangled):
    """conv2d_halo_wgmma_kernel of _ZN4kiln...24conv2d_halo_wgmma_kernelI...: a mangled name has its length before it."""
    for match in re.finditer("_kernel", mangled):
        for length in range(8, 100):
            start = match.end() - length
            if start > 3 and mangled[:start].endswith(str(length)) and mangled[start].isalpha():
                return mangled[start:match.end()]
    return mangled


def resources(text):
    """[(object, architecture, kernel, {"REG": 40, "STACK": 0, "LOCAL": 0, ...})] of cuobjdump --dump-resource-usage."""
    found, member, arch, function = [], "", "", ""
    for line in text.splitlines():
        if line.startswith("member "):
            member = line.rsplit(":", 2)[1]
        elif line.startswith("arch = "):
            arch = line.split()[-1]
        elif line.startswith(" Function "):
            function = line.split()[1].rstrip(":")
        elif line.lstrip().startswith("REG:"):
            found.append((member, arch, kernel_name(function), {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", line)}))
    return found


def functions(text):
    """[(kernel, [(address, predicate or None, operation, operands)])] of cuobjdump --dump-sass."""
    found = []
    for line in text.splitlines():
        if "Function :" in line:
            found.append((kernel_name(line.split(":")[1].strip()), []))
        elif found and (match := INSTRUCTION.match(line)):
            found[-1][1].append((int(match[1], 16), match[2], match[3], match[4]))
    return found


def successors(code):
    """For each instruction the indices of those that may follow it; none for one that is never reached."""
    index = {address: i for i, (address, *_) in enumerate(code)}
    after, joins = [set() for _ in code], {0: frozenset()}  # joins: where BSYNC of each B goes on, as BSSY has said on the way
    work = [0]
    while work:
        i = work.pop()
        _, predicate, operation, operands = code[i]
        kind, open_joins, next_one = operation.split(".")[0], joins[i], {i + 1}
        target = index.get(int((re.findall(r"0x([0-9a-f]+)", operands) or ["0"])[-1], 16))
        barrier = re.search(r"\bB\d+", operands)
        if kind == "BSSY":
            open_joins = frozenset({(b, t) for b, t in open_joins if b != barrier[0]} | {(barrier[0], target)})
        elif kind in ("BRA", "JMP"):
            always = predicate is None and operation != "BRA.DIV" and re.fullmatch(r"0x[0-9a-f]+", operands)
            next_one = {target} | (set() if always else next_one)
        elif kind == "CALL":  # what is called comes back
            next_one = {target} | next_one
        elif kind == "BSYNC":
            next_one = {t for b, t in open_joins if b == barrier[0]} | (next_one if predicate else set())
        elif kind in ("EXIT", "RET"):
            next_one = next_one if predicate else set()
        elif kind in ("BRX", "JMX"):  # a jump through a table: anywhere
            next_one = set(range(len(code)))
        for s in next_one:
            if s is not None and s < len(code):
                after[i].add(s)
                if s not in joins or not open_joins <= joins[s]:
                    joins[s] = joins.get(s, frozenset()) | open_joins
                    work.append(s)
    return after


def unfenced(code, readers):
    """Addresses of `readers` of shared memory that a store into it reaches on a path without a fence and then a barrier."""
    if not any(readers.match(operation) for _, _, operation, _ in code):
        return []
    after = successors(code)
    work = [(s, False) for i, (_, _, operation, _) in enumerate(code) if STORES.match(operation) for s in after[i]]
    reached, found = set(), set()
    while work:
        i, fenced = work.pop()
        if (i, fenced) in reached:
            continue
        reached.add((i, fenced))
        address, predicate, operation, _ = code[i]
        if readers.match(operation):
            found.add(address)
        if fenced and BARRIERS.match(operation):
            continue  # from here on other threads may have it read
        fenced = fenced or (operation.startswith(FENCE) and predicate is None)
        work += [(s, fenced) for s in after[i]]
    return sorted(found)


def unwaited(code):
    """Addresses where a kernel that waits for the launch ahead of it touches global memory, or ends, and has not waited;
    None for one that does not wait."""
    if not any(operation == WAIT for _, _, operation, _ in code):
        return None
    after, work, reached, found = successors(code), [0], set(), set()
    while work:
        i = work.pop()
        address, predicate, operation, _ = code[i]
        if i in reached or (operation == WAIT and predicate is None):
            continue
        reached.add(i)
        if GLOBAL.match(operation) or operation == "EXIT":
            found.add(address)
        work += after[i]
    return sorted(found)


def read_object(path):
    """[(object, kernel, counts)] of an object's code for sm_90a."""
    found = []
    for kernel, code in functions(dump(path, "--dump-sass", "--gpu-architecture", "sm_90a")):
        operations = [operation for _, _, operation, _ in code]
        count = collections.Counter(operation.split(".")[0] for operation in operations)
        found.append((path.name, kernel, {
            "instructions": len(code), "tma_loads": count["UTMALDG"], "async_loads": count["LDGSTS"],
            "local": count["LDL"] + count["STL"], "hgmma": sum(bool(PRODUCTS.match(o)) for o in operations),
            "copies_out": sum(bool(COPIES_OUT.match(o)) for o in operations),
            "unwaited": unwaited(code), "unfenced": unfenced(code, COPIES_OUT), "unfenced_products": unfenced(code, PRODUCTS)}))
    return found


class Resources(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.found = resources(dump(LIBRARY, "--dump-resource-usage"))

    def test_the_list_is_whole(self):
        compiled = [pathlib.Path(entry["file"]) for entry in json.loads((BUILD / "compile_commands.json").read_text())]
        sources = {p.name for p in compiled
                   if p.parent.parent == ROOT / "kernels" and p.suffix == ".cu" and "__global__" in p.read_text()}
        read = {member[:-2] for member, *_ in self.found}
        self.assertGreater(len(sources), 50)
        self.assertEqual(sorted(sources - read), [], "kernels of these files were not found in the library")

    def test_no_kernel_spills(self):
        """A spilled register and an array that is indexed at run time both lie on the stack."""
        bad = [f"{member} {arch} {kernel}: {use}" for member, arch, kernel, use in self.found if use["STACK"] or use["LOCAL"]]
        COUNTS["kernels"], COUNTS["kernels_with_stack"] = len(self.found), len(bad)
        self.assertEqual(bad, [])

    def test_a_stack_is_seen(self):
        text = ("member lib.a:x_naive.cu.o:\narch = sm_90\nResource usage:\n Function _ZN4kiln14x_naive_kernelEv:\n"
                "  REG:32 STACK:16 SHARED:0 LOCAL:0 CONSTANT[0]:536\n")
        self.assertEqual(resources(text), [("x_naive.cu.o", "sm_90", "x_naive_kernel",
                                            {"REG": 32, "STACK": 16, "SHARED": 0, "LOCAL": 0})])


class MachineCode(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not (shutil.which("nvdisasm") or os.access(pathlib.Path(CUOBJDUMP).parent / "nvdisasm", os.X_OK)):
            why = "nvdisasm, which cuobjdump needs for machine code, was not found"
            print(f"SKIPPED: MachineCode: {why}")
            raise unittest.SkipTest(why)
        objects = sorted((BUILD / "CMakeFiles" / "kiln_kernels_sm90a.dir").glob("kernels/*/*.cu.o"),
                         key=lambda p: -p.stat().st_size)
        members = set(subprocess.run(["ar", "t", LIBRARY], capture_output=True, text=True).stdout.split())
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            cls.found = [kernel for part in pool.map(run_reader, [p for p in objects if p.name in members]) for kernel in part]

    def wgmma(self):
        return [(f, k, c) for f, k, c in self.found if re.search(r"_wgmma[_.]", f) and k not in NO_PRODUCT]

    def test_wgmma_kernels_multiply_with_hgmma(self):
        COUNTS["wgmma_kernels"], COUNTS["with_hgmma"] = len(self.wgmma()), sum(c["hgmma"] > 0 for _, _, c in self.wgmma())
        self.assertGreaterEqual(len(self.wgmma()), 10)
        self.assertEqual([f"{f} {k}" for f, k, c in self.wgmma() if not c["hgmma"]], [])
        named = [(f, k) for f, k, _ in self.found if "wgmma" in k]
        self.assertEqual([n for n in named if n not in [(f, k) for f, k, _ in self.wgmma()]], [])

    def test_no_kernel_uses_local_memory(self):
        COUNTS["local_memory_instructions"] = sum(c["local"] for _, _, c in self.found)
        self.assertGreater(len(self.found), 0)
        self.assertEqual([f"{f} {k}: {c['local']}" for f, k, c in self.found if c["local"]], [])

    def test_operands_of_products_come_by_tma(self):
        """What the copy engine wrote needs no fence before wgmma reads it; what cp.async wrote would."""
        self.assertEqual([f"{f} {k}" for f, k, c in self.found if c["hgmma"] and (not c["tma_loads"] or c["async_loads"])], [])

    def test_stores_are_fenced_before_products_read_them(self):
        bad = [f"{f} {k}" for f, k, c in self.found if c["unfenced_products"] and f.split(".")[0] not in RESULTS_STAGED
               and k not in RESULTS_STAGED_KERNELS]
        self.assertEqual(bad, [], "no fence before wgmma; if it does not read what is stored, the file belongs in RESULTS_STAGED")

    def test_stores_are_fenced_before_the_copy_engine_reads_them(self):
        out = [(f, k, c) for f, k, c in self.found if c["copies_out"]]
        COUNTS["kernels_that_copy_out"], COUNTS["unfenced"] = len(out), sum(bool(c["unfenced"]) for _, _, c in out)
        self.assertGreater(len(out), 0)
        self.assertEqual([f"{f} {k} at {[hex(a) for a in c['unfenced']]}" for f, k, c in out if c["unfenced"]], [])

    def test_kernels_launched_early_wait(self):
        found = [(f, k, c["unwaited"]) for f, k, c in self.found]
        for path in sorted((BUILD / "CMakeFiles" / "kiln_kernels.dir").glob("kernels/*/*.cu.o")):
            if path.name.split(".")[0] in EARLY_PORTABLE:
                text = dump(path, "--dump-sass", "--gpu-architecture", "sm_90")
                found += [(path.name, kernel, unwaited(code)) for kernel, code in functions(text)]
        waits = [(f, k, bad) for f, k, bad in found if bad is not None]
        COUNTS["kernels_that_wait"], COUNTS["unwaited"] = len(waits), sum(bool(b) for _, k, b in waits if k not in REHEARSING)
        self.assertEqual([f"{f} {k}" for f, k, bad in found if k in EARLY and bad is None], [], "no wait")
        self.assertEqual([f"{f} {k} at {[hex(a) for a in bad]}" for f, k, bad in waits if bad and k not in REHEARSING], [])

    def test_a_missing_wait_is_seen(self):
        load, wait, end = (0, None, "LDG.E", ""), (16, None, WAIT, ""), (32, None, "EXIT", "")
        self.assertEqual(unwaited([wait, load, end]), [])
        self.assertEqual(unwaited([load, wait, end]), [0])
        self.assertEqual(unwaited([(0, "P0", "EXIT", ""), wait, end]), [0])
        self.assertIsNone(unwaited([load, end]))

    def test_a_missing_fence_is_seen(self):
        planted = sorted(BUILD.glob("tests/CMakeFiles/proxy_fence.dir/*.cu.o"))
        if not planted:
            self.skipTest("tests/proxy_fence.cu is not built")
        seen = {k: c for _, k, c in read_object(planted[0]) if k.startswith("copy_")}
        self.assertEqual(sorted(seen), ["copy_fenced_kernel", "copy_unfenced_kernel"])
        for kernel, counts in seen.items():
            self.assertGreater(counts["copies_out"], 0, kernel)
            self.assertEqual(bool(counts["unfenced"]), kernel == "copy_unfenced_kernel", kernel)
        COUNTS["missing_fence_seen"] = True


def run_reader(path):
    """read_object() in a process of its own: reading the text takes longer than writing it."""
    command = [sys.executable, __file__, str(BUILD), "--read", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "KILN_CUOBJDUMP": CUOBJDUMP})
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-1000:])
    return json.loads(done.stdout)


ROOT = pathlib.Path(__file__).resolve().parent.parent
COUNTS = {}
CUOBJDUMP = find_tool()

if __name__ == "__main__":
    if CUOBJDUMP and "--read" in sys.argv:
        json.dump(read_object(pathlib.Path(sys.argv[sys.argv.index("--read") + 1])), sys.stdout)
        sys.exit(0)
    if not CUOBJDUMP:
        skip("cuobjdump was not found; it comes with the CUDA Toolkit, or name it in KILN_CUOBJDUMP")
    if not LIBRARY.exists() or b".cu.o" not in subprocess.run(["ar", "t", LIBRARY], capture_output=True).stdout:
        skip(f"{LIBRARY} has no CUDA code")
    done = unittest.main(argv=sys.argv[:1], exit=False).result
    if TO_JSON:
        pathlib.Path(TO_JSON).write_text(json.dumps({**COUNTS, "passed": done.wasSuccessful()}) + "\n")
    sys.exit(not done.wasSuccessful())
