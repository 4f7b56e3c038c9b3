#!/bin/bash
# Throw-away Debian machines with a real systemd, for the lab tests: systemd-nspawn over a debootstrap image.
#
#   machine.sh image              make the base image if it is not there; prints its folder
#   machine.sh up NAME            make NAME if it is new, boot it, wait until systemd is up
#   machine.sh exec NAME CMD...   run CMD as root inside; exit code and standard streams pass through
#   machine.sh pid NAME           print the process that is PID 1 inside, as seen from here
#   machine.sh reboot NAME        orderly reboot
#   machine.sh cut NAME           power cut: what was not synced to the disk is lost; `up` boots it again
#   machine.sh down NAME          end it and remove every trace
#   machine.sh sweep              the same for every machine
#
# Needs root and the packages debootstrap, systemd-container, iproute2, e2fsprogs, python3 (scripts/setup installs
# them); no systemd, machined or network on the host once the image is made. Every machine has a file system of its own
# (ext4 in a sparse file above the image, so that a cut is a cut) and a network of its own (loopback only).
set -euo pipefail

lab=${PICKET_LAB:-/var/tmp/picket-lab}
packages=systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,ca-certificates,curl,procps,iproute2
# nspawn's own list of permitted system calls is older than these; a machine that is no container permits them.
landlock="landlock_create_ruleset landlock_add_rule landlock_restrict_self"
fanotify="fanotify_init fanotify_mark name_to_handle_at open_by_handle_at"
patience=60
disk_mib=2048
self=$(readlink -f "$0")

fail() {
    echo "machine: $*" >&2
    exit 1
}

# shellcheck source=/dev/null
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")

# Prints the distribution's own mirror, where this host has one that debootstrap can use; other sources have a `main`, too.
# Asked for only when there is an image to make, for apt takes its time.
find_mirror() {
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 'Component: main' 2>/dev/null |
        awk -v codename="$codename" '$1 ~ /^(Debian|Ubuntu)$/ && $2 == codename && $3 ~ /^http/ { print $3; exit }' || true
}

# Sets `dir` to the machine's folder.
select_machine() {
    [[ $1 =~ ^[a-z0-9][a-z0-9-]{0,40}$ ]] || fail "bad name '$1'"
    name=$1
    dir=$lab/run/$1
}

existing_machine() {
    select_machine "$1"
    [ -d "$dir" ] || fail "there is no machine '$1'"
}

# The process that is PID 1 inside, seen from here; fails while the machine is off.
init_pid() {
    local nspawn child children=
    nspawn=$(cat "$dir/nspawn.pid" 2>/dev/null) || return 1
    children=$(cat "/proc/$nspawn/task/$nspawn/children" 2>/dev/null) || return 1
    for child in $children; do
        if [ "$(awk '/^NSpid:/ { print $NF }' "/proc/$child/status" 2>/dev/null)" = 1 ]; then
            echo "$child"
            return 0
        fi
    done
    return 1
}

inside() {
    local init=$1
    shift
    nsenter --target "$init" --all --root --wd -- /usr/bin/env -i HOME=/root USER=root LANG=C.UTF-8 \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

# Waits until systemd has finished booting; with a second argument, until another PID 1 than that one has.
wait_until_up() {
    local end=$((SECONDS + patience)) init state=
    while [ $SECONDS -lt $end ]; do
        if init=$(init_pid) && [ "$init" != "${1:-}" ]; then
            state=$(inside "$init" systemctl is-system-running 2>/dev/null || true)
            case $state in running | degraded) return 0 ;; esac
        elif [ -e "$dir/ended" ]; then
            break
        fi
        sleep 0.05
    done
    tail -n 20 "$dir/console.log" >&2
    fail "$name is not up (systemd says '${state:-nothing}', nspawn ended with '$(cat "$dir/ended" 2>/dev/null)')"
}

# The machine's control groups: one in each hierarchy that this host has.
control_groups() {
    local root
    for root in /sys/fs/cgroup/unified /sys/fs/cgroup/systemd /sys/fs/cgroup; do
        if [ -e "$root/cgroup.procs" ]; then echo "$root/picket-lab-$name"; fi
    done
}

end_processes() {
    local init group supervisor
    if init=$(init_pid); then kill -KILL "$init" 2>/dev/null || true; fi
    for group in $(control_groups); do
        [ ! -e "$group/cgroup.kill" ] || echo 1 >"$group/cgroup.kill" 2>/dev/null || true
    done
    supervisor=$(cat "$dir/supervisor.pid" 2>/dev/null || true)
    for _ in $(seq 500); do
        if ! { [ -n "$supervisor" ] && kill -0 "$supervisor" 2>/dev/null; } && [ -z "$(losetup -j "$dir/disk")" ]; then
            break
        fi
        sleep 0.02
    done
    rm -f "$dir/nspawn.pid" "$dir/supervisor.pid"
    for group in $(control_groups); do
        [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    done
}

make_image() {
    local image=$lab/images/$codename mirror
    if [ ! -d "$image" ]; then
        mirror=$(find_mirror)
        mkdir -p "$lab/images"
        rm -rf "$image.part"
        if ! debootstrap --variant=minbase --include="$packages" "$codename" "$image.part" ${mirror:+"$mirror"} \
            >"$lab/images/$codename.log" 2>&1; then
            tail "$lab/images/$codename.log" >&2
            fail "debootstrap failed"
        fi
        : >"$image.part/etc/machine-id"
        rm -f "$image.part/etc/hostname" "$image.part"/var/cache/apt/archives/*.deb
        # The journal must outlive a reboot; a console and apt's own timers only disturb.
        mkdir -p "$image.part/var/log/journal"
        local unit
        for unit in console-getty.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer; do
            ln -sf /dev/null "$image.part/etc/systemd/system/$unit"
        done
        mv "$image.part" "$image"
    fi
    echo "$image"
}

# Runs in a mount namespace of its own: when its last process ends, nothing is left mounted.
supervise() {
    select_machine "$1"
    echo $$ >"$dir/supervisor.pid"
    local groups code
    mount -o loop,noatime "$dir/disk" "$dir/store"
    mkdir -p "$dir/store/upper" "$dir/store/work"
    mount -t overlay "picket-lab-$name" \
        -o "lowerdir=$(cat "$dir/image"),upperdir=$dir/store/upper,workdir=$dir/store/work" "$dir/root"
    if [ ! -e "$dir/root/etc/hostname" ]; then
        echo "$name" >"$dir/root/etc/hostname"
        printf '127.0.0.1 localhost\n127.0.1.1 %s\n::1 localhost\n' "$name" >"$dir/root/etc/hosts"
    fi
    while :; do
        for groups in $(control_groups); do
            mkdir -p "$groups"
            echo $BASHPID >"$groups/cgroup.procs" || true
        done
        systemd-nspawn --quiet --directory="$dir/root" --boot --machine="$name" --register=no --keep-unit \
            --system-call-filter="$landlock $fanotify" --capability=CAP_NET_ADMIN --console=passive --resolv-conf=off --timezone=off --link-journal=no \
            --network-namespace-path="/run/netns/picket-lab-$name" >>"$dir/console.log" 2>&1 </dev/null &
        echo $! >"$dir/nspawn.pid"
        code=0
        wait $! || code=$?
        # 133 is how nspawn asks for the reboot that its machine wanted.
        [ "$code" = 133 ] || break
    done
    echo "$code" >"$dir/ended"
}

up() {
    select_machine "$1"
    mkdir -p "$lab/run"
    # Two first machines at once make one image.
    exec 9>"$lab/lock"
    flock 9
    local image
    image=$(make_image)
    if [ ! -d "$dir" ]; then
        mkdir -p "$dir/root" "$dir/store"
        echo "$image" >"$dir/image"
        truncate -s "${disk_mib}M" "$dir/disk"
        mkfs.ext4 -q -F "$dir/disk"
        ip netns add "picket-lab-$name"
        ip -n "picket-lab-$name" link set lo up
    fi
    flock -u 9
    exec 9>&-
    if init_pid >/dev/null; then fail "$name is up already"; fi
    rm -f "$dir/ended"
    touch "$dir/console.log"
    setsid unshare --mount --propagation private "$self" supervise "$name" </dev/null >>"$dir/console.log" 2>&1 &
    wait_until_up
}

run_inside() {
    existing_machine "$1"
    shift
    local init
    init=$(init_pid) || fail "$name is off"
    inside "$init" "$@"
}

reboot_machine() {
    existing_machine "$1"
    local init
    init=$(init_pid) || fail "$name is off"
    inside "$init" systemctl reboot 2>/dev/null || true
    wait_until_up "$init"
}

cut() {
    existing_machine "$1"
    # FS_IOC_SHUTDOWN with NOLOGFLUSH (linux/fs.h, fs/ext4/ioctl.c): from this instant nothing reaches the disk any more,
    # not even what the page cache still holds. The next mount replays the journal.
    python3 -c 'import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack("I", 2))' \
        "/proc/$(cat "$dir/supervisor.pid")/root$dir/store"
    end_processes
}

down() {
    existing_machine "$1"
    end_processes
    ip netns delete "picket-lab-$name" 2>/dev/null || true
    rm -rf --one-file-system "$dir"
}

case ${1:-} in
image) make_image ;;
up) up "$2" ;;
exec)
    shift
    run_inside "$@"
    ;;
pid)
    existing_machine "$2"
    init_pid || fail "$name is off"
    ;;
reboot) reboot_machine "$2" ;;
cut) cut "$2" ;;
down) down "$2" ;;
sweep)
    for machine in "$lab"/run/*/; do
        if [ -d "$machine" ]; then "$self" down "$(basename "$machine")"; fi
    done
    ;;
supervise) supervise "$2" ;;
*)
    sed -n '2,16s/^# \{0,1\}//p' "$self" >&2
    exit 2
    ;;
esac
