#!/usr/bin/env bats
# ivshmem_client -D: programs are nodes in virtual machines as they are on the host, in real guests,
# without KVM. In device.bats are those devices that no QEMU of today has.
# shellcheck disable=SC2016,SC2153 # programs are text; lib/common.bash sets STATUS

load lib/common
load lib/client
load lib/guest

teardown_more() {
	[ -n "${BATS_TEST_COMPLETED-}" ] || tail -n 30 "$WORK"/*.console || true
}

AT=0000:00:04.0 # where devices are in the guests

# A device that is connected to the server.
doorbell() {
	DEVICE=(-chardev "socket,path=$SOCK,id=fam" -device "ivshmem-doorbell,chardev=fam,vectors=3,addr=4")
}

# As `try`, for what takes minutes where other processes want the processor as well.
try_long() { # COMMAND...
	STATUS=0
	timeout --kill-after=5 300 "$@" >"$WORK/out" 2>"$WORK/err" 3>&- || STATUS=$?
}

# A program as a node on the host, which must end well; what it says is added to $WORK/host.
host_runs() { # PROGRAM...
	try_long "$CLIENT" -n 3 "$SOCK" run "$@"
	is "status of $*: $(cat "$WORK/err")" "$STATUS" 0
	cat "$WORK/out" >>"$WORK/host"
}

# What a guest does of the test of programs: it asks and answers, and rings in the shell.
PROGRAMS='
	ivshmem_client -D run sh -c "echo fam: answers; exec node answer"
	ivshmem_client -D run sh -c "
		read -r word <&4
		echo fam: asks
		read -r word vector count <&4
		exec node ask 2 100"
	ivshmem_client -D run sh -c "echo fam: script; exec sh /ring.sh 3"
'

# The host's part. The guest is node 0, and each of these the next.
programs() { # GUEST
	guest_says "$1" answers
	host_runs "$NODE" ask 0 1000
	has "$WORK/host" "asked 1000 times on each of 3 vectors"
	guest_says "$1" "answered 3000 times"
	guest_says "$1" asks
	host_runs sh -c 'echo ring 0 0 >&5; exec "$0" answer' "$NODE"
	has "$WORK/host" "answered 300 times"
	guest_says "$1" "asked 100 times on each of 3 vectors"
	guest_says "$1" script
	host_runs sh "$SOURCE_DIR/tests/guest/ring.sh" 0
	has "$WORK/host" "script 3 was rung by 0"
	guest_says "$1" "script 0 was rung by 3"
	# What it took stands in the log of the tests.
	grep -h 'us until' "$WORK/host" "$WORK/$1.console" | tr -d '\r' | sed "s/^fam:/# $1:/" >&3
}

@test "polled, without a driver: the same programs on the host and in a guest, and no ring is lost" {
	need_client_guests
	doorbell
	start -f memory -m 4M -n 3
	client_guest polled "at=$AT"'
		device_state $at >/before
		say "$(ivshmem_client -D list | tr "\n" " ")"
		device_unchanged /before $at
		device_state $at >/before
		'"$PROGRAMS"'
		device_unchanged /before $at
	' "${DEVICE[@]}"
	guest_says polled "id 0 memory 4194304 vectors 3 rings polled "
	programs polled
	guest_ends polled
	stop
}

# Whether the guest's kernel keeps everybody from the memory of a device that vfio-pci has. Linux 7.2
# does, 6.1 and 6.12 do not.
kernel_refuses() { # GUEST
	local said
	eventually grep -q 'fam: kernel .* maps: ' "$WORK/$1.console"
	said=$(sed -n 's/.*fam: kernel //p' "$WORK/$1.console" | tr -d '\r')
	[[ $said != *' maps: yes' ]] || return 1
	[[ $said == [7-9].*' maps: ivshmem_client: this kernel lets nobody map a device that vfio-pci has: unbind'* ]] ||
		no "the kernel says: $said"
}

@test "by interrupts, with vfio-pci: the same programs, and no ring is lost" {
	need_client_guests
	doorbell
	start -f memory -m 4M -n 3
	client_guest interrupts "at=$AT"'
		device_bind $at
		device_state $at >/before
		say "$(ivshmem_client -D list | tr "\n" " ")"
		say "kernel $(uname -r) maps: $(ivshmem_client -D run true 2>&1 && echo yes)"
		device_unchanged /before $at
		ivshmem_client -D run true || {
			echo $at >/sys/bus/pci/devices/$at/driver/unbind
			say "$(ivshmem_client -D run sh -c "ivshmem_client -D list" | tail -n 1)"
			poweroff -f
		}
		'"$PROGRAMS"'
		device_unchanged /before $at
		# The listener has it, and others ring all the same.
		say "$(ivshmem_client -D run sh -c "
			read -r ready <&4
			ivshmem_client -D wait 0 2>&1
			ivshmem_client -D ring 0 2
			read -r ring <&4
			echo \$ring" | tail -n 1)"
		say "$(ivshmem_client -D run sh -c "ivshmem_client -D wait 0 2>&1" | sed s,vfio/[0-9]*,vfio/N,)"
		# Killed, or unbound, it is as it was.
		ivshmem_client -D wait 1 >/waits &
		until grep -q "^id" /waits; do sleep 0.1; done
		kill -KILL $!
		wait || true
		device_unchanged /before $at
		echo $at >/sys/bus/pci/devices/$at/driver/unbind
		say "$(ivshmem_client -D list | tail -n 1)"
	' -machine q35,kernel-irqchip=split -device intel-iommu,intremap=on "${DEVICE[@]}"
	guest_says interrupts "id 0 memory 4194304 vectors 3 rings interrupts "
	if kernel_refuses interrupts; then
		guest_says interrupts "rings polled"
		stop
		return
	fi
	programs interrupts
	guest_ends interrupts
	guest_says interrupts "ring 2 1"
	guest_says interrupts "ivshmem_client: cannot open /dev/vfio/N: Device or resource busy: another process has it, maybe a client that waits for rings"
	guest_says interrupts "rings polled"
	stop
}

@test "the README's way from nothing to two nodes works as it stands" {
	need_client_guests
	cp -r "$SOURCE_DIR"/{Makefile,send_scm.[ch],tm_ivshmem_server.c,server,client} .
	rm -f client/ivshmem_client
	ln -s "$SOURCE_DIR/.deps" .deps
	awk '/^##/ { here = $0 == "### From nothing to two nodes" }
		here && /^```$/ { block = 0 }
		here && block { print }
		here && /^```sh$/ { block = 1 }' "$SOURCE_DIR/README.md" >"$WORK/commands"
	[ "$(grep -c . "$WORK/commands")" -gt 30 ]
	# What it is said to show.
	mapfile -t said < <(awk '/^##/ { here = $0 == "### From nothing to two nodes" }
		here && /^```$/ { block = !block && !code; code = 0; next }
		/^```sh$/ { code = 1 }
		here && block' "$SOURCE_DIR/README.md")
	[ "${#said[@]}" = 3 ]
	try_long env -u MAKEFLAGS SANITIZE= bash -e "$WORK/commands"
	is "status: $(cat "$WORK/err")" "$STATUS" 0
	tr -d '\r' <"$WORK/out" >"$WORK/said"
	has "$WORK/said" "${said[@]}" "0000000 12345678"
}

@test "make demo: each of three nodes is there, writes, rings and is rung" {
	need_client_guests
	[ -x "$CLIENT" ]
	try_long "$SOURCE_DIR/tests/demo"
	is "status: $(cat "$WORK/err")" "$STATUS" 0
	is 'what stands beside the lines' "$(cat "$WORK/err"; grep -v '(node\|^The host joins' "$WORK/out")" ''
	for node in 'the host (node 0)' '(node 1)' '(node 2)'; do
		has "$WORK/out" "$node is there" "$node writes 'message" "$node rings node" "$node was rung, and reads 'message"
	done
	has "$WORK/out" "the host (node 0) was rung, and reads 'message 9"
}
