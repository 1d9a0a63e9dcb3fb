# shellcheck shell=bash
# Linux guests for tests: the kernel that make deps has brought, with tests/guest/init.c as the only
# program, which does the steps that it is given and powers off. Loaded after common.bash.

# Builds what guests boot: $INIT, which does its steps on the host, too, and $INITRD.
need_guests() {
	need_tool qemu-system-x86_64 cpio
	KERNEL=$SOURCE_DIR/.deps/vmlinuz
	[ -s "$KERNEL" ] || skip "needs a kernel for guests, which make deps brings"
	declare -gA GUESTS=()
	INIT=$WORK/guest/init
	INITRD=$WORK/guest/initrd
	mkdir "$WORK/guest"
	# shellcheck disable=SC2086 # CC may have arguments
	${CC:-cc} -std=gnu11 -O2 -Wall -Wextra -Wshadow -Werror -static -o "$INIT" "$SOURCE_DIR/tests/guest/init.c"
	(cd "$WORK/guest" && echo init | cpio --quiet -o -H newc >"$INITRD")
}

# What every guest has on its kernel's command line. A kernel that tests whether its timer works panics
# where other processes keep QEMU from its work meanwhile.
guest_command_line() { # STEPS
	echo "console=ttyS0 quiet panic=-1 no_timer_check intel_iommu=on fam=$1"
}

# Starts a guest in the background; what it prints is in $WORK/NAME.console.
guest() { # NAME STEPS QEMU'S-ARGUMENT...
	local name=$1 steps=$2
	shift 2
	qemu-system-x86_64 -accel tcg -m 128 -nodefaults -display none -no-reboot \
		-kernel "$KERNEL" -initrd "$INITRD" -append "$(guest_command_line "$steps")" \
		-serial "file:$WORK/$name.console" "$@" >"$WORK/$name.qemu" 2>&1 3>&- &
	GUESTS[$name]=$!
	PIDS+=("$!")
}

console_has() { # NAME TEXT
	tr -d '\r' 2>/dev/null <"$WORK/$1.console" | grep -qxF -e "fam: $2"
}

guest_says_or_ended() { # NAME TEXT
	console_has "$1" "$2" || ended "${GUESTS[$1]}"
}

# Waits until a guest says the text.
guest_says() { # NAME TEXT
	eventually guest_says_or_ended "$1" "$2"
	console_has "$1" "$2" || no "no '$2' from guest $1:" "$(cat "$WORK/$1".{console,qemu})"
}

# Waits for the end of a guest, which must have done all its steps.
guest_ends() { # NAME
	local status=0
	eventually ended "${GUESTS[$1]}"
	wait "${GUESTS[$1]}" || status=$?
	is "status of the QEMU of guest $1: $(cat "$WORK/$1.qemu")" "$status" 0
	guest_says "$1" "done"
}

# --- guests with a shell, where the client runs: tests/guest/shell is their init

# Builds what they boot, once for each file of tests: the client as a file to copy, and node, a
# program that the client runs, here as well as there ($NODE).
need_client_guests() {
	local base=${TEST_DIR:-$BATS_FILE_TMPDIR}/client-guest root src
	need_tool qemu-system-x86_64 cpio busybox make
	KERNEL=$SOURCE_DIR/.deps/vmlinuz
	if ! [ -s "$KERNEL" ] || ! [ -d "$SOURCE_DIR/.deps/modules" ]; then
		skip "needs a kernel for guests, and its modules, which make deps brings"
	fi
	! ldd "$(command -v busybox)" >/dev/null 2>&1 || skip "needs busybox-static"
	declare -gA GUESTS=()
	GUEST_BASE=$base/initrd
	NODE=$base/root/bin/node
	[ ! -s "$GUEST_BASE" ] || return 0
	root=$base/root
	src=$base/src
	mkdir -p "$root"/{bin,proc,sys,dev,modules} "$src/client"
	cp "$SOURCE_DIR"/{Makefile,send_scm.[ch]} "$src"
	cp "$SOURCE_DIR"/client/*.[ch] "$src/client"
	make -s -C "$src" SANITIZE='' CFLAGS=-O2 LDFLAGS=-static client/ivshmem_client
	cp "$src/client/ivshmem_client" "$root/bin"
	# shellcheck disable=SC2086 # CC may have arguments
	${CC:-cc} -std=gnu11 -O2 -Wall -Wextra -Wshadow -Werror -static -o "$NODE" "$SOURCE_DIR/tests/guest/node.c"
	cp "$(command -v busybox)" "$root/bin/busybox"
	cp "$SOURCE_DIR/.deps/modules"/* "$root/modules"
	cp "$SOURCE_DIR/tests/guest/ring.sh" "$root"
	cp "$SOURCE_DIR/tests/guest/shell" "$root/init"
	chmod 755 "$root/init"
	(cd "$root" && find . | cpio --quiet -o -H newc >"$GUEST_BASE")
}

# Makes $INITRD of a guest that does a shell script.
client_initrd() { # NAME SCRIPT
	INITRD=$WORK/$1.initrd
	mkdir -p "$WORK/$1"
	echo "$2" >"$WORK/$1/script"
	(cd "$WORK/$1" && echo script | cpio --quiet -o -H newc | cat "$GUEST_BASE" - >"$INITRD")
}

# Starts a guest that does a shell script, in the background; see `guest`.
client_guest() { # NAME SCRIPT QEMU'S-ARGUMENT...
	local name=$1
	client_initrd "$1" "$2"
	shift 2
	guest "$name" "" "$@"
}
