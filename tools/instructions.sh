#!/usr/bin/env bash
# Counts the instructions of one operation of the wire layer or of the core under callgrind and holds them to the
# bars. A target is where a figure should come to; one that is missed is said and does not fail.
#
#   tools/instructions.sh            all operations
#
# Each operation runs N and 2N times; the difference of the totals, divided by N, is its price. The loop and the
# call ("nothing") are part of every figure. Needs valgrind. Ends with 1 if a bar is broken.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v valgrind >/dev/null || { echo "tools/instructions.sh: valgrind is not installed" >&2; exit 2; }
n=2000
binary=$(cargo bench --quiet --no-run --bench instructions --message-format=json |
  grep -o '"executable":"[^"]*instructions[^"]*"' | tail -1 | cut -d'"' -f4)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

run() { # operation count -> "instructions allocations"
  local allocations
  allocations=$(valgrind --tool=callgrind --callgrind-out-file="$scratch/out" "$binary" "$1" "$2" 2>"$scratch/log") ||
    { cat "$scratch/log" >&2; exit 2; }
  echo "$(sed -n 's/^\(summary\|totals\): \([0-9]*\).*/\2/p' "$scratch/out" | tail -1) $allocations"
}

declare -A price
broken=0
verdict() { # name value bar
  local mark=ok
  if [ "$(awk -v a="$2" -v b="$3" 'BEGIN { print (a > b) }')" = 1 ]; then mark=BROKEN broken=1; fi
  printf '%-34s %12s %12s  %s\n' "$1" "$2" "$3" "$mark"
}
measure() { # operation [bar]
  local once twice
  once=$(run "$1" "$n")
  twice=$(run "$1" $((2 * n)))
  price[$1]=$(awk -v a="${once% *}" -v b="${twice% *}" -v n=$n 'BEGIN { printf "%.1f", (b - a) / n }')
  if [ $# -gt 1 ]; then verdict "$1" "${price[$1]}" "$2"; else printf '%-34s %12s %12s\n' "$1" "${price[$1]}" -; fi
  case $1 in *packet-core*) ;; *) [ "${twice#* }" = 0 ] || verdict "$1: allocations" "${twice#* }" 0 ;; esac
}
ratio() { awk -v a="${price[$1]}" -v b="${price[$2]}" 'BEGIN { printf "%.2f", a / b }'; }

printf '%-34s %12s %12s\n' operation Ir bar
measure nothing
measure route 40
measure parse-1 80
measure parse-6 220
measure parse-30 900
measure by-hand-1
measure by-hand-6
measure by-hand-30
measure emit-128 110
measure emit-control 350
measure parse-control
measure dump
measure dump-by-hand
measure dump-lengths
measure dump-packet-core-views
measure dump-packet-core-messages
measure deframe-64 1420
measure filter 35
measure core-push 520
measure core-push-64 24700
measure core-ask-answer 1490
measure core-fanout-1 820
measure core-fanout-64 13600
n=20000 # the tables' random seeds change what it costs to fill them
measure core-answer-10 450
measure core-answer-10000 450
measure core-answer-1000000 450
n=200
measure core-fanout-1000 203000
measure core-one-of-10 1040
measure core-one-of-10000
for count in 1 6 30; do
  verdict "parse-$count / by-hand-$count" "$(ratio parse-$count by-hand-$count)" 1.25
done
verdict "dump / dump-by-hand" "$(ratio dump dump-by-hand)" 1.25
verdict "dump / packet-core-views" "$(ratio dump dump-packet-core-views)" 1.00
verdict "dump / packet-core-messages" "$(ratio dump dump-packet-core-messages)" 0.333
for count in 10000 1000000; do
  verdict "answer, $count / 10 addresses" "$(ratio core-answer-$count core-answer-10)" 1.5
done
verdict "1 of 10000 / 1 of 10 conditions" "$(ratio core-one-of-10000 core-one-of-10)" 1.5
[ $broken = 0 ] || { echo "a bar is broken" >&2; exit 1; }
