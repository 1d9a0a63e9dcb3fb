#!/usr/bin/env bats
# The packages of make deb: what they have, and what happens when they come, are upgraded and go, with
# the real systemd and without any.
# shellcheck disable=SC2016 # many scripts are for other shells

load lib/common
load lib/systemd

PACKAGES=(tm-ivshmem-server tm-ivshmem-server-qemu)

# Builds the packages of this source in a folder of its own, as a user would: with no flags of a test, and
# as whom $AS says.
packages_build() { # FOLDER [VARIABLE=VALUE...]
	mkdir -p "$1"
	(cd "$SOURCE_DIR" && cp -a Makefile README.md ./*.[ch] tm_ivshmem_server.[!c]* server client doc packaging "$1")
	[ -z "${AS-}" ] || chown -R "$AS:$AS" "$1"
	env -u MAKEFLAGS -u MFLAGS -u SANITIZE -u CFLAGS -u CPPFLAGS -u LDFLAGS -u SOURCE_DATE_EPOCH TMPDIR="$1" \
		${AS:+setpriv "--reuid=$AS" "--regid=$AS" --clear-groups} make -s -C "$1" deb "${@:2}"
}

# Of the same source, one of another version.
setup_file() {
	command -v dpkg-deb >/dev/null || return 0 # each test says so
	export OLD=$BATS_FILE_TMPDIR/old NEW=$BATS_FILE_TMPDIR/new VERSION_NEW=99.1
	packages_build "$OLD" &
	packages_build "$NEW" VERSION=$VERSION_NEW
	wait $!
	VERSION_OLD=$(sed -n 's/^VERSION = //p' "$SOURCE_DIR/Makefile")
	export VERSION_OLD
}

setup() {
	need_tool dpkg-deb
	WORK=$TEST_DIR/$BATS_TEST_NUMBER
	mkdir "$WORK"
}

teardown() {
	# shellcheck disable=SC2154 # both are of lib/systemd
	[ -z "${ROOT-}" ] || umount "$ROOT" "$upper" 2>/dev/null || true
}

# The file of a package.
package() { # FOLDER PACKAGE
	echo "$1/build/$2"_*.deb
}

@test "the packages have what make install installs, with links by QEMU's names in the second" {
	local name file
	for name in "${PACKAGES[@]}"; do
		dpkg-deb -x "$(package "$OLD" "$name")" "$WORK/all"
		dpkg-deb -R "$(package "$OLD" "$name")" "$WORK/$name"
		(cd "$WORK/$name" && md5sum --quiet -c DEBIAN/md5sums)
		diff <(cd "$WORK/$name" && find usr -type f | sort) <(sed 's/^[^ ]*  //' "$WORK/$name/DEBIAN/md5sums")
		is "owners in $name" "$(dpkg-deb -c "$(package "$OLD" "$name")" | awk '{ print $2 }' | sort -u)" root/root
		missing "$WORK/$name/DEBIAN/conffiles"
	done
	make -C "$OLD" -s install-ivshmem-server DESTDIR="$WORK/made" PREFIX=/usr \
		DOCDIR=/usr/share/doc/tm-ivshmem-server
	# What Debian wants beside that.
	diff <(cd "$WORK/all" && find . ! -type d | sed 's,\(/man/.*\)\.gz$,\1,' | sort) \
		<({
			cd "$WORK/made" && find . ! -type d
			printf './usr/share/doc/%s\n' tm-ivshmem-server{,-qemu}/{copyright,changelog.gz}
			echo ./usr/share/lintian/overrides/tm-ivshmem-server
		} | sort)
	for file in README.md doc/NEWS.md; do
		cmp "$SOURCE_DIR/$file" "$WORK/all/usr/share/doc/tm-ivshmem-server/$file"
	done
	is "what is in /etc" "$(find "$WORK/all/etc")" "$WORK/all/etc"$'\n'"$WORK/all/etc/tm_ivshmem_server"
	is "the program" "$("$WORK/all/usr/sbin/tm_ivshmem_server" --version)" "tm_ivshmem_server $VERSION_OLD"
	grep -q '^ExecStart=/usr/sbin/tm_ivshmem_server ' \
		"$WORK/all/usr/lib/systemd/system/tm_ivshmem_server@.service"
	cd "$WORK/tm-ivshmem-server-qemu"
	is "QEMU's names" "$(find . -path './usr/bin/*' -printf '%f %l\n' | sort)" \
		$'ivshmem-client ivshmem_client\nivshmem-server ../sbin/tm_ivshmem_server'
	is "programs in the second" "$(find . -type f -perm /111 ! -path './DEBIAN/*')" ''
}

@test "the packages say what they are, what they need, and what has changed" {
	local control=$WORK/control changes
	dpkg-deb -f "$(package "$OLD" tm-ivshmem-server)" >"$control"
	has "$control" "Version: $VERSION_OLD" "Architecture: $(dpkg --print-architecture)"
	# As Debian's own tool finds it, where that is.
	[[ $(sed -n 's/^Depends: //p' "$control") =~ ^libc6\ \(\>=\ ([0-9.]+)\),\ passwd$ ]]
	glibc=${BASH_REMATCH[1]}
	if command -v dpkg-shlibdeps >/dev/null; then
		mkdir "$WORK/debian" "$WORK/root"
		touch "$WORK/debian/control"
		dpkg-deb -x "$(package "$OLD" tm-ivshmem-server)" "$WORK/root"
		needs=$(cd "$WORK" && dpkg-shlibdeps -O root/usr/sbin/tm_ivshmem_server root/usr/bin/ivshmem_client)
		dpkg --compare-versions "$glibc" ge "$(sed -E 's/.*libc6 \(>= ([0-9.]+)\)$/\1/' <<<"$needs")"
		is "what is needed" "${needs% (*}" shlibs:Depends=libc6
	fi
	dpkg-deb -f "$(package "$OLD" tm-ivshmem-server-qemu)" >"$control"
	has "$control" 'Architecture: all' "Depends: tm-ivshmem-server (>= $VERSION_OLD)" \
		'Conflicts: ' 'ivshmem-server' 'Provides: '

	changes=$WORK/changes
	dpkg-deb --fsys-tarfile "$(package "$OLD" tm-ivshmem-server)" |
		tar -xO ./usr/share/doc/tm-ivshmem-server/changelog.gz | zcat >"$changes"
	is "entries" "$(grep -c '^  \* ' "$changes")" "$(grep -c '^- ' "$SOURCE_DIR/doc/NEWS.md")"
	is "versions" "$(sed -nE 's/^tm-ivshmem-server \((.*)\) unstable; urgency=medium$/\1/p' "$changes")" \
		"$(sed -nE 's/^## ([^ ]+) .*/\1/p' "$SOURCE_DIR/doc/NEWS.md")"
	# All words of them, in order.
	diff <(sed '1,/^## /d; /^## /d; s/^- //' "$SOURCE_DIR/doc/NEWS.md" | tr -s ' \n' '\n' | sed '/^$/d') \
		<(grep '^  ' "$changes" | sed 's/^  \*//' | tr -s ' \n' '\n' | sed '/^$/d')
	! command -v dpkg-parsechangelog >/dev/null || dpkg-parsechangelog -l "$changes" --all >/dev/null
}

@test "lintian has nothing to say, but of what is explained" {
	need_tool lintian
	run lintian --allow-root --no-cfg --show-overrides "$(package "$OLD" tm-ivshmem-server)" \
		"$(package "$OLD" tm-ivshmem-server-qemu)"
	echo "$output"
	[ "$status" -eq 0 ]
	# Each tag that is overridden, and its reason.
	is "what lintian says" "$(grep -vE '^(N: |N$|O: )' <<<"$output")" ''
	is "what it would say" "$(sed -n 's/^O: [^ ]* \([^ ]*\).*/\1/p' <<<"$output" | sort | uniq -c | xargs)" \
		'2 maintainer-script-calls-systemctl'
	[[ $output == *'N: Only the names of instances are known'* ]]
}

@test "the same source gives the same bytes, elsewhere, and to another user who is not root" {
	if [ "$(id -u)" = 0 ]; then
		need_tool setpriv
		AS=$NOBODY
		chmod 755 "$TEST_DIR" "$WORK"
	fi
	# A package of another version does not stay beside them.
	mkdir -p "$WORK/another place/build"
	touch "$WORK/another place/build/tm-ivshmem-server_1.0_$(dpkg --print-architecture).deb"
	(umask 077 && packages_build "$WORK/another place" -j2)
	for name in "${PACKAGES[@]}"; do
		cmp "$(package "$OLD" "$name")" "$(package "$WORK/another place" "$name")"
	done
}

# --- installed, in files that are this machine's, and gone afterwards

# Copies the packages there: in folders, each with that for the server, and in qemu with the other.
packages_bring() {
	mkdir -p "$ROOT/packages/old" "$ROOT/packages/new" "$ROOT/packages/qemu"
	cp "$(package "$OLD" tm-ivshmem-server)" "$ROOT/packages/old"
	cp "$(package "$NEW" tm-ivshmem-server)" "$ROOT/packages/new"
	cp "$(package "$OLD" tm-ivshmem-server-qemu)" "$ROOT/packages/qemu"
}

# A package as the new one, in a folder of that name, with a script in place of its program, which is
# tm_ivshmem_server.real there.
package_break() { # FOLDER SCRIPT
	local root=$WORK/$1.root
	dpkg-deb -R "$(package "$NEW" tm-ivshmem-server)" "$root"
	mv "$root/usr/sbin/tm_ivshmem_server" "$root/usr/sbin/tm_ivshmem_server.real"
	printf '#!/bin/sh\n%s\n' "$2" >"$root/usr/sbin/tm_ivshmem_server"
	chmod 755 "$root/usr/sbin/tm_ivshmem_server"
	sed -i "s/^Version: .*/&.$1/" "$root/DEBIAN/control"
	mkdir "$ROOT/packages/$1"
	dpkg-deb -Znone --build "$root" "$ROOT/packages/$1/tm-ivshmem-server_$1.deb" >/dev/null
}

@test "an upgrade is noticed by no node, nor is one that is refused; a removal says whom it lets go" {
	container_make
	packages_bring
	rm -f "$ROOT/usr/sbin/policy-rc.d" # which would forbid what is tried
	package_break broken 'exit 1'
	package_break refusing 'case " $* " in *" --check "*) exec "$0.real" "$@" ;; esac; exit 3'
	tests_there a_package_is_upgraded
}

# Runs a script there, with processes of its own and without systemd; it has `eventually`.
in_chroot() { # SCRIPT
	# shellcheck disable=SC2154 # ROOT is that of lib/systemd
	unshare --mount --pid --fork --kill-child sh -c '
		mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" &&
			exec chroot "$0" sh -e -c "$1"' "$ROOT" "$(declare -f no eventually)"$'\n'"$1" 3>&-
}

@test "without systemd all comes, is upgraded and goes as well, and servers that run are named" {
	need_namespace
	container_make
	packages_bring
	rm -rf "$ROOT/run/systemd" "$ROOT/usr/bin/systemctl" "$ROOT/usr/bin/deb-systemd-invoke"
	sed -i '/^kvm:/d' "$ROOT/etc/group" "$ROOT/etc/gshadow"
	# An instance that is enabled, without anybody who would start it.
	mkdir -p "$ROOT/etc/systemd/system/multi-user.target.wants"
	ln -s /usr/lib/systemd/system/tm_ivshmem_server@.service \
		"$ROOT/etc/systemd/system/multi-user.target.wants/tm_ivshmem_server@fam.service"
	cat >"$ROOT/script" <<-'END'
		exec 2>&1
		upgraded() {
			[ "$(readlink "/proc/$1/exe")" = /usr/sbin/tm_ivshmem_server ]
		}
		gone() {
			[ ! -e "$1" ]
		}
		echo '== install'
		dpkg --no-triggers -i /packages/old/*.deb /packages/qemu/*.deb
		getent group kvm
		ivshmem-server --help | head -n 1
		man -w ivshmem-server
		mkdir /var/lib/tm_ivshmem_server
		tm_ivshmem_server -d -i /run/fam.pid -p /run/fam.sock -f /var/lib/tm_ivshmem_server/fam
		pid=$(cat /run/fam.pid)
		ivshmem_client /run/fam.sock watch >/watched &
		watcher=$!
		eventually grep -q ^id /watched
		echo '== upgrade'
		dpkg --no-triggers -i /packages/new/*.deb
		kill -HUP $pid
		eventually upgraded $pid
		ivshmem_client /run/fam.sock list | grep -c '^peer'
		echo '== remove'
		dpkg --no-triggers -r tm-ivshmem-server-qemu tm-ivshmem-server
		kill -0 $watcher && echo 'the node is there'
		kill $pid
		eventually gone /run/fam.sock
		echo "== purge"
		dpkg --no-triggers -P tm-ivshmem-server
		find /etc /run /usr /var -xdev -name '*ivshmem[-_]*' ! -path '*/qemu*' ! -path '/var/tmp/*'
		echo "process $pid"
	END
	run in_chroot '. /script'
	echo "$output"
	[ "$status" -eq 0 ]
	pid=${output##*process }
	part() { # NAME: what was said in that part, of who runs and of memory
		sed -n "/^== $1\$/,/^== /p" <<<"$output"
	}
	grep -qx 'kvm:x:[0-9]*:' <<<"$output"
	[[ $(part install) == *'Usage: ivshmem-server '* ]]
	[[ $(part install) == *'/man8/tm_ivshmem_server.8'* ]]
	is "of servers, at first" "$(part install | grep -c 'not started by a unit' || true)" 0
	[[ $(part upgrade) == *"process $pid was not started by a unit and still runs the previous version; to upgrade it, which no node notices: kill -HUP $pid"* ]]
	# The node from before.
	is "peers" "$(part upgrade | grep -cx 1)" 1
	[[ $(part remove) == *"process $pid was not started by a unit and keeps running; to end it: kill $pid"* ]]
	[[ $(part remove) == *'the node is there'* ]]
	[[ $(part purge) == *'/var/lib/tm_ivshmem_server stays, because it has the memory of nodes: fam'* ]]
	is "what is left" "$(part purge | sed -n 's,^/,/,p')" /var/lib/tm_ivshmem_server
}

@test "QEMU's names go only where no other program has them" {
	need_namespace
	container_make
	packages_bring
	# A package that has them says so, or is found by dpkg; one program belongs to no package.
	mkdir -p "$WORK/another/DEBIAN" "$WORK/another/usr/bin"
	touch "$WORK/another/usr/bin/ivshmem-server"
	printf '%s: %s\n' Package another Version 1 Architecture all Maintainer nobody Description another \
		>"$WORK/another/DEBIAN/control"
	dpkg-deb -Znone --build "$WORK/another" "$ROOT/packages/another.deb" >/dev/null
	echo 'Provides: ivshmem-server' >>"$WORK/another/DEBIAN/control"
	dpkg-deb -Znone --build "$WORK/another" "$ROOT/packages/provider.deb" >/dev/null
	cat >"$ROOT/script" <<-'END'
		exec 2>&1
		rm -f /usr/sbin/policy-rc.d
		dpkg --no-triggers -i /packages/old/*.deb
		for package in another provider; do
			echo "== $package"
			dpkg -i /packages/$package.deb
			! dpkg --no-triggers -i /packages/qemu/*.deb || echo installed
			dpkg -P another tm-ivshmem-server-qemu
		done
		echo '== nobody'
		touch /usr/bin/ivshmem-client
		! dpkg --no-triggers -i /packages/qemu/*.deb || echo installed
		[ -s /usr/bin/ivshmem-client ] || echo untouched
		rm /usr/bin/ivshmem-client
		# What make install has made is replaced.
		ln -s ../sbin/tm_ivshmem_server /usr/bin/ivshmem-server
		dpkg --no-triggers -i /packages/qemu/*.deb && echo installed
	END
	run in_chroot '. /script'
	echo "$output"
	[ "$status" -eq 0 ]
	is "how often it was installed" "$(grep -c '^installed$' <<<"$output")" 1
	[[ ${output##*== nobody} == *'/usr/bin/ivshmem-client is another program: remove it first'*untouched*installed* ]]
	[[ $output == *"trying to overwrite '/usr/bin/ivshmem-server', which is also in package another"* ]]
	[[ $output == *'conflicting packages - not installing tm-ivshmem-server-qemu'* ]]
}
