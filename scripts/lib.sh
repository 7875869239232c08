# Shared by the scripts: finding and installing what kiln needs. Sourced, not run.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*"; }
die() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

has_header() { printf '#include <%s>\n' "$1" | g++ -std=c++20 -E -x c++ - >/dev/null 2>&1; }

# missing_packages WHAT...: Debian packages that provide what this machine lacks of WHAT.
missing_packages() {
  local what
  for what in "$@"; do
    case "$what" in
      g++) command -v g++ >/dev/null || echo g++ ;;
      cmake) command -v cmake >/dev/null || echo cmake ;;
      ninja) command -v ninja >/dev/null || echo ninja-build ;;
      python) command -v python3 >/dev/null || echo python3 ;;
      venv) python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv ;;
      git) command -v git >/dev/null || echo git ;;
      clang-format) command -v clang-format >/dev/null || echo clang-format ;;
      openblas) has_header cblas.h || has_header openblas/cblas.h || has_header x86_64-linux-gnu/cblas.h || echo libopenblas-dev ;;
      cli11) has_header CLI/CLI.hpp || echo libcli11-dev ;;
      stb) has_header stb/stb_image.h || echo libstb-dev ;;
      json) has_header nlohmann/json.hpp || echo nlohmann-json3-dev ;;
      gtest) has_header gtest/gtest.h || echo libgtest-dev ;;
      benchmark) has_header benchmark/benchmark.h || echo libbenchmark-dev ;;
      *) die "missing_packages: unknown '$what'" ;;
    esac
  done
}

# need WHAT...: installs what is missing with apt-get (as root, or through sudo), or says what to install.
need() {
  local packages
  packages=$(missing_packages "$@" | sort -u | tr '\n' ' ')
  [ -n "${packages// /}" ] || return 0
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
  if ! command -v apt-get >/dev/null || { [ "${#as_root[@]}" -gt 0 ] && ! command -v sudo >/dev/null; }; then
    die "please install these packages (Debian names): $packages"
  fi
  say "installing $packages"
  "${as_root[@]}" apt-get update -qq
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends $packages >/dev/null
}

has_nvcc() { command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; }
has_gpu() { compgen -G '/dev/nvidia[0-9]*' >/dev/null; }
