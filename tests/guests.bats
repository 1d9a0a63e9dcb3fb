#!/usr/bin/env bats
# Linux guests, in QEMU nodes without KVM: what one writes all over the memory another reads, and so
# does whoever comes later, when nodes and server are long gone.

load lib/common
load lib/guest

# Where a test has failed, what the guests said last may tell why.
teardown_more() {
	[ -n "${BATS_TEST_COMPLETED-}" ] || tail -n 3 "$WORK"/*.console || true
}

# A device that is connected to the server.
doorbell() {
	DEVICE=(-chardev "socket,path=$SOCK,id=fam" -device "ivshmem-doorbell,chardev=fam,vectors=2")
}

# One guest waits for the doorbell of its second vector, another writes and rings it.
write_and_ring() { # SEED
	doorbell
	guest reader "id,wait:1,quiet:0,check:$1" "${DEVICE[@]}"
	guest_says reader "id 0, 67108864 bytes"
	guest writer "id,write:$1,ring:0:1" "${DEVICE[@]}"
	guest_ends writer
	guest_ends reader
	guest_says writer "id 1, 67108864 bytes"
	guest_says reader "found $1 over 67108864 bytes"
}

@test "a file: a guest reads what another wrote, both see it after a new start of all, the host as well" {
	need_guests
	start -f fam -m 64M -n 2
	write_and_ring 1
	stop
	"$INIT" fam check:1
	run "$INIT" fam check:2
	is "status of the check of what nobody wrote" "$status" 1

	start -f fam -n 2
	guest stays id,wait:0,check:1,write:2,wait:1 "${DEVICE[@]}"
	guest_says stays "id 0, 67108864 bytes"
	guest reader id,check:1,ring:0:0 "${DEVICE[@]}"
	guest_ends reader
	guest_says reader "id 1, 67108864 bytes"
	guest_says stays "wrote 2 over 67108864 bytes"

	# The power of the node is cut, and the server killed: what was written is in the file.
	kill -KILL "${GUESTS[stays]}" "$PID"
	eventually ended "${GUESTS[stays]}"
	eventually ended "$PID"
	"$INIT" fam check:2
}

@test "a shared memory object: guests with a server, and one that maps it without" {
	need_guests
	start -s "$SHM" -m 64M -n 2
	write_and_ring 3
	stop
	"$INIT" "/dev/shm/$SHM" check:3
	guest plain check:3,write:4 -device ivshmem-plain,memdev=fam \
		-object "memory-backend-file,id=fam,share=on,size=64M,mem-path=/dev/shm/$SHM"
	guest_ends plain
	"$INIT" "/dev/shm/$SHM" check:4
}
