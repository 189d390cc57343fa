# Runs in a VM with a whole cgroup v2; prints one line a check: "check NAME VALUE". tests/limits.rs says what must hold.
set -u
say() { echo "check $*"; }
line() { tr '\n' ' ' < "$1" | sed 's/ *$//'; }
rt() { hull-runtime --root /run/rt "$@"; }
group() { line "/sys/fs/cgroup/t/$1/$2"; }
field() { grep "^$3 " "/sys/fs/cgroup/t/$1/$2" | cut -d' ' -f2; }
uptime_cs() { cut -d' ' -f1 /proc/uptime | tr -d .; }

mkdir -p /b/rootfs/bin /b/rootfs/proc /b/rootfs/sys /b/rootfs/dev /b/rootfs/tmp
cp /bin/busybox /bin/probe /b/rootfs/bin/
for a in sh cat dd echo grep head mknod sleep tail true; do ln -s busybox /b/rootfs/bin/$a; done
disk=$(cat /sys/block/vda/dev)
major=${disk%:*} minor=${disk#*:}

# make ID RESOURCES SCRIPT: a bundle
make() {
    mkdir -p "/b/$1"
    cat > "/b/$1/config.json" <<J
{"ociVersion": "1.2.0", "root": {"path": "/b/rootfs"},
 "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "args": ["sh", "-c", "$3"],
  "capabilities": {"bounding": ["CAP_MKNOD"], "effective": ["CAP_MKNOD"], "permitted": ["CAP_MKNOD"]}},
 "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
  {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
  {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
  {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}],
 "linux": {"cgroupsPath": "/t/$1", "resources": $2,
  "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "cgroup"}]}}
J
}
up() { make "$@"; rt create -b "/b/$1" "$1" </dev/null >"/b/$1/out" 2>&1 && rt start "$1" || cat "/b/$1/out"; }
# run ID RESOURCES SCRIPT: to its end; the cgroup stays
run() { make "$@"; rt run --keep -b "/b/$1" "$1" </dev/null >"/b/$1/out" 2>&1; say "$1.exit $?"; }
gone() { [ -d "/sys/fs/cgroup/t/$1" ] || [ -d "/run/rt/$1" ] && say "$1.gone no" || say "$1.gone yes"; }

echo 8 > /proc/sys/vm/nr_hugepages
mkswap /dev/vda >/dev/null && swapon /dev/vda

# Every limit at once, read back from outside and from inside.
FILES="memory.max memory.low memory.high memory.swap.max memory.oom.group cpu.max cpu.max.burst cpu.weight cpuset.cpus
    cpuset.mems pids.max io.max hugetlb.2MB.max"
up all '{"memory": {"limit": 67108864, "reservation": 33554432, "swap": 134217728},
  "cpu": {"shares": 1024, "quota": 50000, "period": 100000, "burst": 10000, "cpus": "1", "mems": "0"}, "pids": {"limit": 64},
  "blockIO": {"throttleReadBpsDevice": [{"major": '$major', "minor": '$minor', "rate": 1048576}],
   "throttleWriteIOPSDevice": [{"major": '$major', "minor": '$minor', "rate": 77}]},
  "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}],
  "unified": {"memory.high": "60000000", "memory.oom.group": "1"}}' 'exec sleep 1000'
for f in $FILES; do say "outside.$f $(group all $f)"; done
rt exec all sh -c "for f in $(echo $FILES); do echo check inside.\$f \$(cat /sys/fs/cgroup/\$f); done"
say "inside.write $(rt exec all sh -c 'echo max > /sys/fs/cgroup/pids.max' 2>&1)"
rt update -r - all <<J
{"memory": {"limit": 134217728, "reservation": 16777216, "swap": 134217728},
 "cpu": {"shares": 2, "quota": -1, "period": 50000, "cpus": "0-1"}, "pids": {"limit": -1},
 "blockIO": {"throttleReadBpsDevice": [{"major": $major, "minor": $minor, "rate": 2097152}]},
 "hugepageLimits": [{"pageSize": "2MB", "limit": 2097152}], "unified": {"memory.high": "max", "memory.oom.group": "0"}}
J
say "update.exit $?"
for f in $FILES; do say "updated.$f $(group all $f)"; done
rt events --stats all > /b/stats && say "events.stats $(cat /b/stats)"
rt delete --force all; gone all

# Out of memory: only the guilty dies, and it is counted and told.
up modest '{"memory": {"limit": 33554432}}' 'exec sleep 1000'
make guilty '{"memory": {"limit": 33554432, "swap": 33554432}}' 'sleep 1; tail /dev/zero; exec sleep 1000'
rt create -b /b/guilty guilty </dev/null >/b/guilty/out 2>&1
rt events guilty > /b/guilty/events & watcher=$!
rt start guilty
n=0; until [ "$(field guilty memory.events oom_kill)" != 0 ] || [ $n = 200 ]; do usleep 100000; n=$((n+1)); done
n=0; until grep -q '"type":"oom"' /b/guilty/events || [ $n = 50 ]; do usleep 100000; n=$((n+1)); done
kill $watcher; say "guilty.event $(grep '"type":"oom"' /b/guilty/events | head -1)"
say "guilty.oom_kill $(field guilty memory.events oom_kill)"
say "modest.oom_kill $(field modest memory.events oom_kill)"
say "modest.status $(rt state modest | grep -o 'running')"
rt delete --force guilty; gone guilty
run init-oom '{"memory": {"limit": 33554432, "swap": 33554432}}' 'exec tail /dev/zero'
rt delete init-oom

# Above memory.high it is slowed and reclaimed, not killed. Swap takes what fits, and no more.
run high '{"unified": {"memory.high": "8388608", "memory.swap.max": "max"}}' 'dd if=/dev/zero of=/dev/x bs=1M count=12 2>&1'
say "high.events $(field high memory.events high)"
say "high.oom_kill $(field high memory.events oom_kill)"
run swapped '{"memory": {"limit": 16777216, "swap": 50331648}}' 'dd if=/dev/zero of=/dev/x bs=1M count=24 2>&1'
say "swapped.max $(group swapped memory.swap.max)"
say "swapped.peak $(group swapped memory.swap.peak)"
run unswapped '{"memory": {"limit": 16777216, "swap": 16777216}}' 'dd if=/dev/zero of=/dev/x bs=1M count=24 2>&1; true'
say "unswapped.oom_kill $(field unswapped memory.events oom_kill)"
say "unswapped.peak $(group unswapped memory.swap.peak)"
for c in high swapped unswapped; do rt delete $c; done

# cpu: a quota of a tenth; weights of two on one processor; cpuset.
up tenth '{"cpu": {"quota": 10000, "period": 100000}}' 'while :; do :; done'
a=$(field tenth cpu.stat usage_usec) t=$(uptime_cs); sleep 2
say "tenth.percent $(( ($(field tenth cpu.stat usage_usec) - a) / 100 / ($(uptime_cs) - t) ))"
say "tenth.throttled $(field tenth cpu.stat nr_throttled)"
rt update --cpu-quota 50000 --cpu-period 100000 tenth; say "tenth.updated $(group tenth cpu.max)"

# Frozen: no time passes for it; exec is refused; it thaws; it can be deleted frozen.
rt pause tenth; a=$(field tenth cpu.stat usage_usec); sleep 1
say "frozen.status $(rt state tenth | grep -o paused)"
say "frozen.event $(field tenth cgroup.events frozen)"
say "frozen.usage $(( $(field tenth cpu.stat usage_usec) - a ))"
say "frozen.exec $(rt exec tenth true 2>&1)"
rt resume tenth; sleep 1
say "thawed.status $(rt state tenth | grep -o running)"
say "thawed.usage $(( $(field tenth cpu.stat usage_usec) - a ))"
rt pause tenth; rt delete --force tenth; say "frozen.delete $?"; gone tenth

up light '{"cpu": {"shares": 2, "cpus": "0"}}' 'while :; do :; done'
up heavy '{"cpu": {"shares": 262144, "cpus": "0"}}' 'while :; do :; done'
a=$(field light cpu.stat usage_usec) b=$(field heavy cpu.stat usage_usec); sleep 2
say "weights.ratio $(( ($(field heavy cpu.stat usage_usec) - b) / (1 + $(field light cpu.stat usage_usec) - a) ))"
say "cpuset.allowed $(grep Cpus_allowed_list "/proc/$(cat /sys/fs/cgroup/t/heavy/cgroup.procs)/status" | tr -d '\t')"
rt update --cpuset-cpus 1 heavy
say "cpuset.updated $(grep Cpus_allowed_list "/proc/$(cat /sys/fs/cgroup/t/heavy/cgroup.procs)/status" | tr -d '\t')"
rt delete --force light; rt delete --force heavy

# pids.max, and a bomb: the runtime still answers, and cgroup.kill ends it.
up bomb '{"pids": {"limit": 64}, "cpu": {"quota": 100000, "period": 100000}}' 'f() { f | f & }; f; while :; do sleep 1; done'
n=0; until [ "$(field bomb pids.events max)" != 0 ] || [ $n = 100 ]; do usleep 100000; n=$((n+1)); done
say "bomb.refused $(field bomb pids.events max)"
say "bomb.peak $(group bomb pids.peak)"
say "bomb.status $(rt state bomb | grep -o running)"
rt delete --force bomb; say "bomb.delete $?"; gone bomb
rt delete --force bomb; say "bomb.again $?"
up stubborn '{"pids": {"limit": 16}}' 'trap : TERM INT; sleep 1000 & sleep 1000 & while :; do wait; done'
rt kill stubborn TERM; sleep 1; say "stubborn.status $(rt state stubborn | grep -o running)"
rt kill --all stubborn KILL
n=0; until rt state stubborn | grep -q stopped || [ $n = 100 ]; do usleep 100000; n=$((n+1)); done
say "stubborn.populated $(field stubborn cgroup.events populated)"
rt delete stubborn; gone stubborn

# io.max: two MiB at one a second take two seconds; without the limit they do not.
read_disk() {
    run "$1" '{"devices": [{"allow": true, "type": "b", "major": '$major', "minor": '$minor', "access": "rm"}]'"$2"'}' \
        "mknod /tmp/$1 b $major $minor; dd if=/tmp/$1 of=/dev/null bs=65536 count=40 iflag=direct 2>/dev/null"
    say "$1.read $(grep -o 'rbytes=[0-9]*' /sys/fs/cgroup/t/$1/io.stat | head -1)"
    rt delete $1
}
t=$(uptime_cs); read_disk fast ''; fast=$(( $(uptime_cs) - t ))
t=$(uptime_cs)
read_disk slow ', "blockIO": {"throttleReadBpsDevice": [{"major": '$major', "minor": '$minor', "rate": 1048576}]}'
say "io.slower $(( $(uptime_cs) - t - fast ))"

# Huge pages: four are asked for, two are allowed.
run huge '{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}' 'probe pages 4'
say "huge.got $(line /b/huge/out)"
say "huge.events $(field huge hugetlb.2MB.events max)"
rt delete huge

# Devices: what the rules allow and deny, for opening and for making.
run devices '{"devices": [{"allow": false, "access": "rwm"},
  {"allow": true, "type": "b", "major": '$major', "minor": '$minor', "access": "r"}]}' \
  "mknod /tmp/disk b $major $minor; mknod /tmp/kmsg c 1 11; \
   head -c 1 /tmp/disk >/dev/null && echo disk-read; (echo x > /tmp/disk) 2>&1; head -c 1 /tmp/kmsg 2>&1; \
   echo x > /dev/null && echo null; head -c 4 /dev/urandom >/dev/null && echo urandom; true"
say "devices.said $(line /b/devices/out)"
run no-mknod '{"devices": [{"allow": true, "access": "rwm"}, {"allow": false, "type": "c", "major": 1, "minor": 11, "access": "m"}]}' \
  'mknod /tmp/kmsg2 c 1 11 2>&1; mknod /tmp/mem c 1 1 && echo made; true'
say "no-mknod.said $(line /b/no-mknod/out)"
rt delete devices; rt delete no-mknod

rt delete --force modest
say "left.containers $(rt list -q | wc -l)"
say "left.groups $(ls -d /sys/fs/cgroup/t/*/ 2>/dev/null | wc -l)"
say "left.processes $(ps | grep -c '[s]leep 1000')"
