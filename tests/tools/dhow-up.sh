# Sourced by scripts that run other projects' tests against a `dhow up`: builds it, starts it with the arguments given, waits
# until it is ready, sets `dhow`, `work` (a folder of this run; `$work/data` is Dhow's) and KUBECONFIG, and ends both with the
# script. What it printed is shown when the script fails.
cargo build --quiet --package dhow
dhow=${CARGO_TARGET_DIR:-target}/debug/dhow
work=$(mktemp -d)
"$dhow" up --data-dir "$work/data" "$@" >"$work/log" 2>&1 &
running=$!
finish() {
    code=$?
    trap - EXIT
    kill "$running" 2>/dev/null || true
    wait "$running" || true
    [ "$code" = 0 ] || tail -n 40 "$work/log" >&2
    rm -rf "$work"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM
until [ -e "$work/data/endpoints.json" ]; do
    kill -0 "$running"
    sleep 0.1
done
export KUBECONFIG="$work/data/kubeconfig"
