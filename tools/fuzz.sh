#!/usr/bin/env bash
# Fuzzes every target for SECONDS each: tools/fuzz.sh 20 [TARGET...]
#
# Needs cargo-fuzz, and takes a nightly toolchain if there is one; else the one that is there is told to let pass what
# only a nightly one may. What is found lies in fuzz/artifacts/<target>/; the corpus grows in
# fuzz/corpus/<target>/ and starts from fuzz/seeds/<target>/. Ends with 1 if a target crashed, after all have run.
# FUZZ_SEED=N takes the same way each time, from the same corpus.
set -u
cd "$(dirname "$0")/.." || exit 2
seconds=${1:-}
case $seconds in
  '' | *[!0-9]*) echo "usage: tools/fuzz.sh SECONDS [TARGET...]" >&2; exit 2 ;;
esac
shift
[ $# -gt 0 ] || set -- deframer envelope_roundtrip control_roundtrip url queue_protocol queue_machine
toolchain=()
if cargo +nightly --version >/dev/null 2>&1; then toolchain=(+nightly); else export RUSTC_BOOTSTRAP=1; fi
# SQLite, which the library links, has static tables of one name in two places
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_odr_violation=0}
failed=()
for target in "$@"; do
  mkdir -p "fuzz/corpus/$target"
  cargo "${toolchain[@]}" fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
    -max_total_time="$seconds" -max_len=70000 -len_control=20 -timeout=10 -print_final_stats=1 \
    -seed="${FUZZ_SEED:-0}" ||
    failed+=("$target")
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "crashed or did not build: ${failed[*]}" >&2
  exit 1
fi
echo "no crash in $seconds s of each of: $*"
