#!/bin/bash
# hosts.sh - real systemd hosts on one machine: systemd-nspawn over overlayfs on a bridge of their own.
#
# Owns: the base tree, the hosts' disks, network namespaces, firewall and processes. It must not know Tidegate.
# The hosts (h1 = PREFIX.11, h2 = PREFIX.12, ...) reach each other and PREFIX.1, the hub, and nothing else: neither the
# machine's own network nor its systemd, if it has one, is touched. Needs root.
#
#   hosts.sh base                  make the base tree once (debootstrap)
#   hosts.sh up N                  boot h1..hN and wait until each is up
#   hosts.sh run HOST CMD...       run inside a host, as root in a clean environment; its exit code is passed on
#   hosts.sh hub CMD...            run on the bridge side
#   hosts.sh push HOST SRC DST [MODE]
#   hosts.sh partition HOST        cut the host's network, both ways
#   hosts.sh heal HOST             undo that
#   hosts.sh kill HOST             power loss: SIGKILL to everything in it; its disk stays
#   hosts.sh boot HOST             start it again and wait until it is up
#   hosts.sh down                  stop all and leave nothing behind
#
# Environment: HOSTS_NAME (default tidegate), HOSTS_PREFIX (10.77.0), HOSTS_BASE (the cached base tree),
#   HOSTS_SUITE (Debian suite of the base tree; must not be older than the machine that built the programs),
#   HOSTS_MIRROR, HOSTS_BOOT_SECONDS (60)
set -euo pipefail

NAME=${HOSTS_NAME:-tidegate}
PREFIX=${HOSTS_PREFIX:-10.77.0}
SUITE=${HOSTS_SUITE:-$(. /etc/os-release && [ "${ID:-}" = debian ] && echo "${VERSION_CODENAME:-bookworm}" || echo bookworm)}
BASE=${HOSTS_BASE:-/var/cache/tidegate-fleet/base}
MIRROR=${HOSTS_MIRROR:-http://deb.debian.org/debian}
BOOT_SECONDS=${HOSTS_BOOT_SECONDS:-60}
DIR=/var/tmp/hosts-$NAME
HUB=$NAME-hub
PACKAGES=systemd,systemd-sysv,dbus,iproute2,curl,ca-certificates,nginx
# Rebuild the base tree when what goes into it changes.
RECIPE="1 $SUITE $PACKAGES"

die() { echo "hosts.sh: $*" >&2; exit 1; }
[[ $NAME =~ ^[a-z][a-z0-9]{0,9}$ ]] || die "HOSTS_NAME must match [a-z][a-z0-9]{0,9}"
[ "$(id -u)" = 0 ] || die "needs root"

# Not 'ip netns exec': it remounts /sys and hides the cgroups.
hub() { nsenter --net="/run/netns/$HUB" -- "$@"; }
address() { echo "$PREFIX.$((10 + ${1#h}))"; }
hosts() { local d; for d in "$DIR"/h*/; do if [ -d "$d" ]; then basename "$d"; fi; done | sort -V; }
known() { [[ ${1:-} =~ ^h[0-9]+$ && -d $DIR/$1 ]] || die "no such host: ${1:-(none)}"; }
cgroups() { # HOST: its cgroup in each hierarchy that systemd uses (v1 name=systemd, hybrid, v2)
  local c
  for c in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
    if [ -e "$c/cgroup.procs" ]; then echo "$c/hosts-$NAME/$1"; fi
  done
}

# The nspawn process of a host. Pids are reused, so its command line must agree.
nspawn_pid() {
  local pid
  pid=$(cat "$DIR/$1/pid" 2>/dev/null) || return 1
  tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q -- "--machine=$NAME-$1 " || return 1
  echo "$pid"
}
# The host's PID 1, as this machine sees it.
init_pid() {
  local parent child
  parent=$(nspawn_pid "$1") || return 1
  for child in $(cat "/proc/$parent/task/$parent/children" 2>/dev/null); do
    if [ "$(awk '/^NSpid:/ { print NF, $NF }' "/proc/$child/status" 2>/dev/null)" = "3 1" ]; then echo "$child"; return 0; fi
  done
  return 1
}
enter() {
  local host=$1 pid
  shift
  pid=$(init_pid "$host") || die "$host is not running"
  nsenter -t "$pid" -m -u -i -n -p -C -- env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"
}

base() {
  if [ "$(cat "$BASE/etc/hosts-recipe" 2>/dev/null)" = "$RECIPE" ]; then return 0; fi
  command -v debootstrap >/dev/null || die "debootstrap is missing: apt-get install debootstrap"
  echo "hosts.sh: making the base tree in $BASE (a minute or two)" >&2
  rm -rf --one-file-system "$BASE" "$BASE.new"
  mkdir -p "$(dirname "$BASE")"
  debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$BASE.new" "$MIRROR" >"$BASE.log" 2>&1 || { tail -5 "$BASE.log" >&2; die "debootstrap failed, see $BASE.log"; }
  rm -rf "$BASE.new"/var/cache/apt/archives/*.deb "$BASE.new"/var/lib/apt/lists/*
  local unit
  # Debian's own nginx must not take the port, and nothing may wake up in the middle of a measurement.
  rm -f "$BASE.new/etc/systemd/system/multi-user.target.wants/nginx.service"
  for unit in console-getty.service apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer dpkg-db-backup.timer; do
    ln -sfn /dev/null "$BASE.new/etc/systemd/system/$unit"
  done
  rm -f "$BASE.new/etc/machine-id"
  echo "$RECIPE" >"$BASE.new/etc/hosts-recipe"
  mv "$BASE.new" "$BASE"
}

make_host() { # HOST COUNT: disk, namespace and link; nothing boots
  local host=$1 disk=$DIR/$1 ns=$NAME-$1 i
  mkdir -p "$disk"/{upper,work,root}
  mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$disk/upper,workdir=$disk/work" "$disk/root"
  echo "$host" >"$disk/root/etc/hostname"
  tr -d - </proc/sys/kernel/random/uuid >"$disk/root/etc/machine-id"
  { echo "127.0.0.1 localhost $host"; echo "$PREFIX.1 hub controller"; for ((i = 1; i <= $2; i++)); do echo "$(address "h$i") h$i"; done; } >"$disk/root/etc/hosts"
  ip netns add "$ns"
  hub ip link add "$host" type veth peer name host0 netns "$ns"
  hub ip link set "$host" master br0 up
  nsenter --net="/run/netns/$ns" -- sh -c "ip link set lo up && ip addr add $(address "$host")/24 dev host0 && ip link set host0 up"
}

launch() {
  local host=$1 disk=$DIR/$1
  if nspawn_pid "$host" >/dev/null; then die "$host runs already"; fi
  (
    # A cgroup of its own; --keep-unit makes nspawn stay in it, as there is no machined to ask.
    for c in $(cgroups "$host"); do { mkdir -p "$c" && echo "$BASHPID" >"$c/cgroup.procs"; } 2>/dev/null || true; done
    echo "$BASHPID" >"$disk/pid"
    exec 9>&- # the lock is not the host's to keep
    exec setsid systemd-nspawn --quiet --boot --register=no --keep-unit --settings=no --link-journal=no --resolv-conf=off --timezone=off \
      --machine="$NAME-$host" --hostname="$host" --directory="$disk/root" --network-namespace-path="/run/netns/$NAME-$host" --capability=CAP_NET_ADMIN \
      </dev/null >"$disk/console.log" 2>&1
  ) &
  disown
}
wait_up() {
  local host=$1 end=$((SECONDS + BOOT_SECONDS)) pid state started=$SECONDS
  while [ $SECONDS -lt $end ]; do
    if pid=$(init_pid "$host") && [ -S "/proc/$pid/root/run/systemd/private" ]; then
      state=$(enter "$host" timeout $((end - SECONDS + 1)) systemctl is-system-running --wait 2>/dev/null || true)
      case $state in
        running) echo "$host $(address "$host") $state"; return 0 ;;
        degraded) echo "$host $(address "$host") $state: $(enter "$host" systemctl --failed --no-legend --plain | awk '{ print $1 }' | tr '\n' ' ')"; return 0 ;;
      esac
    elif ! nspawn_pid "$host" >/dev/null && [ $SECONDS -gt $((started + 2)) ]; then
      break
    fi
    sleep 0.05
  done
  tail -20 "$DIR/$host/console.log" >&2
  die "$host did not come up within $BOOT_SECONDS s"
}
power_off() {
  local host=$1 pid init i
  pid=$(nspawn_pid "$host") || return 0
  # The kernel kills a whole pid namespace with its first process.
  if init=$(init_pid "$host"); then kill -KILL "$init" 2>/dev/null || true; else kill -KILL "$pid" 2>/dev/null || true; fi
  for ((i = 0; i < 200; i++)); do if ! nspawn_pid "$host" >/dev/null; then return 0; fi; sleep 0.05; done
  kill -KILL "$pid" 2>/dev/null || true
  for ((i = 0; i < 100; i++)); do if ! nspawn_pid "$host" >/dev/null; then return 0; fi; sleep 0.05; done
  die "$host does not stop"
}

up() {
  local count=${1:-} tool i
  [[ $count =~ ^[0-9]+$ ]] && [ "$count" -ge 1 ] && [ "$count" -le 50 ] || die "up N, with N from 1 to 50"
  for tool in systemd-nspawn ip nft nsenter setsid; do command -v "$tool" >/dev/null || die "$tool is missing: apt-get install systemd-container iproute2 nftables util-linux"; done
  [ ! -e "$DIR" ] || die "$DIR exists: hosts.sh down first"
  base
  trap 'code=$?; trap - EXIT; if [ $code != 0 ]; then down >&2 || true; fi; exit $code' EXIT
  mkdir -p "$DIR"
  ip netns add "$HUB"
  hub sh -c "ip link set lo up && ip link add br0 type bridge stp_state 0 forward_delay 0 && ip addr add $PREFIX.1/24 dev br0 && ip link set br0 up"
  hub nft -f - <<'N'
table bridge hosts {
  set cut { type ifname; }
  chain forward { type filter hook forward priority 0; iifname @cut drop; oifname @cut drop; }
  chain input { type filter hook input priority 0; iifname @cut drop; }
  chain output { type filter hook output priority 0; oifname @cut drop; }
}
N
  for ((i = 1; i <= count; i++)); do make_host "h$i" "$count"; done
  for ((i = 1; i <= count; i++)); do launch "h$i"; done
  for ((i = 1; i <= count; i++)); do wait_up "h$i"; done
  trap - EXIT
}

down() {
  local host ns i c
  for host in $(hosts); do (power_off "$host") & done
  wait
  for host in $(hosts); do
    for ((i = 0; i < 40; i++)); do
      if ! mountpoint -q "$DIR/$host/root" || umount "$DIR/$host/root" 2>/dev/null; then break; fi
      sleep 0.1
    done
    if mountpoint -q "$DIR/$host/root"; then umount -l "$DIR/$host/root"; fi
    rm -rf "/run/systemd/nspawn/propagate/$NAME-$host" "/run/systemd/nspawn/unix-export/$NAME-$host" 2>/dev/null || true
    for c in $(cgroups "$host"); do if [ -d "$c" ]; then find "$c" -depth -type d -exec rmdir {} + 2>/dev/null || true; rmdir "${c%/*}" 2>/dev/null || true; fi; done
  done
  for ns in $(ip netns list 2>/dev/null | awk '{ print $1 }'); do
    if [[ $ns =~ ^$NAME-(h[0-9]+|hub)$ ]]; then
      # What a killed test left running on the bridge side.
      for pid in $(ip netns pids "$ns"); do kill -KILL "$pid" 2>/dev/null || true; done
      ip netns del "$ns"
    fi
  done
  if grep -q " $DIR/" /proc/self/mounts; then die "something is still mounted below $DIR"; fi
  rm -rf --one-file-system "$DIR"
}

lock() { exec 9>"/run/lock/hosts-$NAME" && flock -w 300 9 || die "another hosts.sh is at work"; }
command=${1:-}
[ $# -eq 0 ] || shift
case $command in
  base) lock; base ;;
  up) lock; up "$@" ;;
  down) lock; down ;;
  run) known "${1:-}"; enter "$@" ;;
  hub) hub "$@" ;;
  push) known "${1:-}"; enter "$1" sh -c 'mkdir -p "$(dirname "$1")" && cat >"$1.new" && chmod "$2" "$1.new" && mv "$1.new" "$1"' sh "${3:?DST}" "${4:-644}" <"${2:?SRC}" ;;
  partition) known "${1:-}"; hub nft add element bridge hosts cut "{ $1 }" ;;
  heal) known "${1:-}"; hub nft delete element bridge hosts cut "{ $1 }" ;;
  kill) known "${1:-}"; lock; power_off "$1" ;;
  boot) known "${1:-}"; lock; launch "$1"; wait_up "$1" ;;
  *) sed -n '2,/^set -euo/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2 ;;
esac
