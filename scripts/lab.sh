# shellcheck shell=bash
# A laboratory on this machine: two network namespaces joined by a veth pair, and programs that run in them. To be sourced
# after lib.sh.

PROBE_NS=nagare-lab-probe TRAFFIC_NS=nagare-lab-traffic
# The captured end of the pair, and the end that traffic is sent into.
TAP=tap0 WIRE=wire0
LAB_COMMANDS=(ip sysctl pgrep)

lab_remove() {
    local namespace
    for namespace in $PROBE_NS $TRAFFIC_NS; do
        [[ ! -e /run/netns/$namespace ]] || as_root ip netns del "$namespace" || true
    done
}

# The kernel's own IPv6 packets would stand in the books beside those that are sent.
lab_quiet() { as_root ip netns exec "$1" sysctl -qw net.ipv6.conf.default.disable_ipv6=1; }

# lab_make: false where this machine does not permit it.
lab_make() {
    lab_remove
    as_root ip netns add $PROBE_NS && as_root ip netns add $TRAFFIC_NS &&
        lab_quiet $PROBE_NS && lab_quiet $TRAFFIC_NS &&
        as_root ip -n $PROBE_NS link set lo up &&
        as_root ip -n $PROBE_NS link add $TAP type veth peer name $WIRE netns $TRAFFIC_NS &&
        as_root ip -n $PROBE_NS link set $TAP up &&
        as_root ip -n $TRAFFIC_NS link set $WIRE up
}

# in_lab COMMAND...: as root in the probe's namespace; as the user where there is none.
in_lab() {
    if [[ -e /run/netns/$PROBE_NS ]]; then as_root ip netns exec $PROBE_NS "$@"; else as_user "$@"; fi
}

# wait_for TEXT FILE PID: until the log holds the text; false where the program ends before, or after 15 seconds.
wait_for() {
    local end=$((SECONDS + 15))
    until grep -q "$1" "$2" 2>/dev/null; do
        # The shell that started it ends with it.
        kill -0 "$3" 2>/dev/null || return 1
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

# program_of PID: the program itself below the shell, sudo and ip that started it.
program_of() {
    local pid=$1 child
    while child=$(pgrep -P "$pid" | head -n 1) && [[ -n $child ]]; do pid=$child; done
    echo "$pid"
}

# signal NAME PID: to the program, which may be root's.
signal() {
    local pid
    pid=$(program_of "$2")
    kill "-$1" "$pid" 2>/dev/null || as_root kill "-$1" "$pid" 2>/dev/null || true
}

# stop PID: SIGTERM to the program, and its exit status.
stop() {
    signal TERM "$1"
    wait "$1"
}
