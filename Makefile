# tm_ivshmem_server: glibc and GNU make are all that it needs.
#
#   make             the server, ./tm_ivshmem_server, and the client, client/ivshmem_client
#   make run         build it and run it on its default: a shared memory object of 1M
#   make demo        two tiny virtual machines and the host share memory, and ring each other
#   make deps        install what the tests need (as root, on Debian)
#   make check       run all tests; REQUIRE_ALL=1: a test that is skipped has failed
#   make faults      let every system call fail in every likely way, and print what came of it
#   make soak        100,000 joins and leaves, all IDs used up, a thousand nodes, 250 x 64 vectors
#   make lint        static analysis of everything, and builds for arm64 and riscv64
#   make coverage    run all tests and show what of the server they do not execute
#   make bench       what a message costs; CASES='200x4:once ...', PEER='another server' (--help)
#   make pictures    draw the pictures in doc/ again, which are committed
#   make releases    try what README.md says first on bare systems of RELEASES='bookworm trixie forky'
#   make install     install programs, manual pages, systemd units, completion and doc/ below PREFIX
#   make install-ivshmem-server  the same, and links by the names of QEMU's server and client
#   make uninstall   remove these again
#   make deb         packages for Debian, in build/: the server, and QEMU's names for it
#   make dist        the source of this commit as tm_ivshmem_server-VERSION.tar.gz
#   make clean       remove what was built
#
# CC, CFLAGS, LDFLAGS, PREFIX and DESTDIR are yours. WERROR=1 makes warnings errors,
# SANITIZE=address,undefined builds everything with sanitizers.

VERSION = 1.3.0

PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
SBINDIR ?= $(PREFIX)/sbin
MANDIR ?= $(PREFIX)/share/man
DOCDIR ?= $(PREFIX)/share/doc/tm_ivshmem_server
UNITDIR ?= $(PREFIX)/lib/systemd/system
COMPLETIONDIR ?= $(PREFIX)/share/bash-completion/completions
INSTALLED = $(SBINDIR)/tm_ivshmem_server $(MANDIR)/man8/tm_ivshmem_server.8 \
	$(UNITDIR)/tm_ivshmem_server@.service $(UNITDIR)/tm_ivshmem_server@.socket \
	$(BINDIR)/ivshmem_client $(MANDIR)/man1/ivshmem_client.1 $(MANDIR)/man7/ivshmem_protocol.7 \
	$(COMPLETIONDIR)/tm_ivshmem_server $(COMPLETIONDIR)/ivshmem_client \
	$(addprefix $(DOCDIR)/,$(PAGES))
PAGES = README.md $(wildcard doc/*.md doc/*.svg)

CFLAGS ?= -O2 -g
WARNINGS = -Wall -Wextra -Wshadow -Wstrict-prototypes $(if $(WERROR),-Werror)
OWN_CFLAGS = -std=gnu11 -DVERSION='"$(VERSION)"' -I. $(WARNINGS) $(SANITIZER)
SANITIZER = $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer)
COMPILE = $(CC) $(OWN_CFLAGS) $(CPPFLAGS) $(CFLAGS)

PROGRAMS = tm_ivshmem_server client/ivshmem_client
CLIENT_OBJECTS = $(patsubst %.c,build/%.o,$(wildcard client/*.c))

# The rooms of the server (server/README.md).
ROOMS = $(patsubst %.c,build/%.o,$(wildcard server/*.c))

# Tests in C (with cmocka) and what they share; tests in shell.
C_TESTS = $(patsubst tests/%.t.c,build/tests/%.t,$(wildcard tests/*.t.c))
SHARED_OBJECTS = $(patsubst tests/lib/%.c,build/tests/lib/%.o,$(wildcard tests/lib/*.c))
BENCH_OBJECTS = $(patsubst %.c,build/%.o,$(wildcard tests/bench/*.c))
BATS = $(wildcard tests/*.bats)
TESTS = $(C_TESTS) $(BATS)

all: $(PROGRAMS)

tm_ivshmem_server: build/tm_ivshmem_server.o $(ROOMS) build/send_scm.o
	$(COMPILE) $(LDFLAGS) -o $@ $^

client/ivshmem_client: $(CLIENT_OBJECTS) build/send_scm.o
	$(COMPILE) $(LDFLAGS) -o $@ $^

build/%.o: %.c build/flags
	@mkdir -p $(@D)
	$(COMPILE) -MMD -MP -c -o $@ $<

build/tests/%.t: build/tests/%.t.o $(SHARED_OBJECTS) build/send_scm.o
	$(COMPILE) $(LDFLAGS) -o $@ $(filter %.o,$^) -lcmocka -lpthread

# Tests of rooms, which need no server; and of a server in a build of its own.
build/tests/places.t: build/tests/places.t.o $(ROOMS) build/send_scm.o
	$(COMPILE) $(LDFLAGS) -o $@ $^ -lcmocka
build/tests/crash.t: build/tests/crash/server

CRASH_SOURCES = tm_ivshmem_server.c send_scm.c $(wildcard server/*.c) tests/crash/point.c
build/tests/crash/server: $(CRASH_SOURCES) send_scm.h $(wildcard server/*.h) tests/crash/point.h
	@mkdir -p $(@D)
	$(COMPILE) -include tests/crash/point.h $(LDFLAGS) -o $@ $(CRASH_SOURCES)

# What takeover-systemd.bats runs where systemd runs.
build/tests/systemd/takeover: build/tests/systemd/takeover.o $(SHARED_OBJECTS) build/send_scm.o
	$(COMPILE) $(LDFLAGS) -o $@ $(filter %.o,$^) -lcmocka -lpthread

build/tests/bench/bench: $(BENCH_OBJECTS) build/send_scm.o
	$(COMPILE) $(LDFLAGS) -o $@ $^

# Other flags, another build: this file changes when the flags do.
build/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(subst ','\'',$(COMPILE) $(LDFLAGS))' | cmp -s - $@ || \
		echo '$(subst ','\'',$(COMPILE) $(LDFLAGS))' >$@

run: tm_ivshmem_server
	./tm_ivshmem_server

demo: $(PROGRAMS)
	@tests/demo

deps:
	tests/deps

check: $(PROGRAMS) $(C_TESTS) build/tests/systemd/takeover
	tests/run $(TESTS)

# The long forms of tests that make check has as well.
faults: export FULL = 1
faults: tm_ivshmem_server build/tests/faults-start.t build/tests/faults-serve.t
	TEST_SECONDS=3600 tests/run build/tests/faults-start.t build/tests/faults-serve.t
	cat build/log/faults-start.txt build/log/faults-serve.txt

soak: export FULL = 1
soak: tm_ivshmem_server build/tests/soak.t build/tests/scale.t
	TEST_SECONDS=3600 tests/run build/tests/soak.t build/tests/scale.t
	cat build/log/soak.t.tap build/log/scale.t.tap

lint:
	tests/lint

coverage:
	tests/coverage

releases:
	tests/releases

# PEER reaches the program as it was written, its $SOCKET and the like included.
bench: tm_ivshmem_server build/tests/bench/bench
	@PEER='$(subst ','\'',$(value PEER))' build/tests/bench/bench --table build/bench.txt $(CASES)
	@if command -v gnuplot >/dev/null; then tests/bench/chart build/bench.svg build/bench.txt; \
		else echo 'no chart: gnuplot is not installed'; fi

# The mesh is drawn by pikchr, which fossil has in it, in the same font and size wherever it is seen;
# what a message costs, from the table in the pages.
SVG_HEAD = <svg xmlns='http://www.w3.org/2000/svg' font-family='sans-serif' font-size='16'

pictures:
	@mkdir -p build
	fossil pikchr doc/mesh.pikchr build/mesh.svg
	sed "1s,<svg.* viewBox=,$(SVG_HEAD) viewBox=," build/mesh.svg >doc/mesh.svg
	tests/bench/chart doc/cost.svg doc/cost.md

install: $(PROGRAMS)
	install -D -m 755 tm_ivshmem_server $(DESTDIR)$(SBINDIR)/tm_ivshmem_server
	install -D -m 644 tm_ivshmem_server.8 $(DESTDIR)$(MANDIR)/man8/tm_ivshmem_server.8
	install -D -m 755 client/ivshmem_client $(DESTDIR)$(BINDIR)/ivshmem_client
	install -D -m 644 client/ivshmem_client.1 $(DESTDIR)$(MANDIR)/man1/ivshmem_client.1
	install -D -m 644 client/ivshmem_protocol.7 $(DESTDIR)$(MANDIR)/man7/ivshmem_protocol.7
	install -D -m 644 tm_ivshmem_server.socket $(DESTDIR)$(UNITDIR)/tm_ivshmem_server@.socket
	for page in $(PAGES); do install -D -m 644 $$page $(DESTDIR)$(DOCDIR)/$$page || exit; done
	sed 's,@SBINDIR@,$(SBINDIR),g' tm_ivshmem_server.service \
		>$(DESTDIR)$(UNITDIR)/tm_ivshmem_server@.service
	chmod 644 $(DESTDIR)$(UNITDIR)/tm_ivshmem_server@.service
	install -D -m 644 packaging/completion.bash $(DESTDIR)$(COMPLETIONDIR)/tm_ivshmem_server
	ln -sf tm_ivshmem_server $(DESTDIR)$(COMPLETIONDIR)/ivshmem_client

# In bin, where the packages of QEMU's programs have them, and so the PATH of those who type the names.
QEMU_SERVER = $(DESTDIR)$(BINDIR)/ivshmem-server
QEMU_CLIENT = $(DESTDIR)$(BINDIR)/ivshmem-client
QEMU_SERVER_PAGE = $(DESTDIR)$(MANDIR)/man8/ivshmem-server.8
QEMU_CLIENT_PAGE = $(DESTDIR)$(MANDIR)/man1/ivshmem-client.1
QEMU_SERVER_COMPLETION = $(DESTDIR)$(COMPLETIONDIR)/ivshmem-server
QEMU_CLIENT_COMPLETION = $(DESTDIR)$(COMPLETIONDIR)/ivshmem-client

# Whether a path is a link to a program of ours; and that nothing else is there, or make fails.
is_ours = readlink $(1) | grep -q '$(2)$$'
not_others = { [ ! -e $(1) ] && [ ! -L $(1) ]; } || $(is_ours) || \
	{ echo '$(1) is another program: remove it first' >&2; exit 1; }

install-ivshmem-server: install
	@$(call not_others,$(QEMU_SERVER),tm_ivshmem_server)
	@$(call not_others,$(QEMU_CLIENT),ivshmem_client)
	ln -sfr $(DESTDIR)$(SBINDIR)/tm_ivshmem_server $(QEMU_SERVER)
	ln -sfr $(DESTDIR)$(BINDIR)/ivshmem_client $(QEMU_CLIENT)
	echo '.so man8/tm_ivshmem_server.8' >$(QEMU_SERVER_PAGE)
	echo '.so man1/ivshmem_client.1' >$(QEMU_CLIENT_PAGE)
	chmod 644 $(QEMU_SERVER_PAGE) $(QEMU_CLIENT_PAGE)
	ln -sf tm_ivshmem_server $(QEMU_SERVER_COMPLETION)
	ln -sf tm_ivshmem_server $(QEMU_CLIENT_COMPLETION)

uninstall:
	rm -f $(addprefix $(DESTDIR),$(INSTALLED))
	rmdir $(DESTDIR)$(DOCDIR)/doc $(DESTDIR)$(DOCDIR) 2>/dev/null || :
	! { $(call is_ours,$(QEMU_SERVER),tm_ivshmem_server); } || \
		rm -f $(QEMU_SERVER) $(QEMU_SERVER_PAGE) $(QEMU_SERVER_COMPLETION)
	! { $(call is_ours,$(QEMU_CLIENT),ivshmem_client); } || \
		rm -f $(QEMU_CLIENT) $(QEMU_CLIENT_PAGE) $(QEMU_CLIENT_COMPLETION)

deb:
	+CC='$(CC)' VERSION='$(VERSION)' packaging/deb

dist:
	git archive --prefix=tm_ivshmem_server-$(VERSION)/ -o tm_ivshmem_server-$(VERSION).tar.gz HEAD

clean:
	rm -rf build $(PROGRAMS)

FORCE:
.PHONY: all run demo deps check faults soak lint coverage releases bench pictures install \
	install-ivshmem-server uninstall deb dist clean FORCE
.SECONDARY:
.DELETE_ON_ERROR:

-include $(wildcard build/*.d build/*/*.d build/tests/*/*.d)
