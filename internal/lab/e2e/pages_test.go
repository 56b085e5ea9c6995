package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/etcdtest"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// shellBlock is a block of commands on a page. A comment above it may say why it is not run
// here (<!-- not run: REASON -->), or what a reader has done by then (<!-- done before:
// COMMANDS -->).
type shellBlock struct {
	page, language, commands string
	line                     int
	unrun, before            string
}

func (b shellBlock) String() string { return fmt.Sprintf("%s:%d", b.page, b.line) }

var (
	fence   = regexp.MustCompile("^ *```([a-z]*)$")
	remark  = regexp.MustCompile(`^ *<!-- (not run|done before): (.+) -->$`)
	program = regexp.MustCompile(`\b(twilld|systemctl)\b`)
)

// shellBlocks returns the blocks sh and console of all pages, in their order. That every
// block has a language is checked where the pages become a site.
func shellBlocks(t testing.TB) (all []shellBlock) {
	t.Helper()
	root := filepath.Join("..", "..", "..")
	var pages []string
	for _, pattern := range []string{"README.md", "docs/*.md", "deploy/*/README.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		testkit.Must(t, err)
		pages = append(pages, found...)
	}
	for _, path := range pages {
		name, err := filepath.Rel(root, path)
		testkit.Must(t, err)
		var inside *shellBlock
		next := shellBlock{page: name}
		for i, line := range strings.Split(textOf(t, path), "\n") {
			if m := remark.FindStringSubmatch(line); m != nil && inside == nil {
				if m[1] == "not run" {
					next.unrun = m[2]
				} else {
					next.before = m[2]
				}
				continue
			}
			m := fence.FindStringSubmatch(line)
			switch {
			case m != nil && inside == nil:
				next.language, next.line = m[1], i+1
				block := next
				inside, next = &block, shellBlock{page: name}
			case m != nil:
				if inside.language == "sh" || inside.language == "console" {
					all = append(all, *inside)
				}
				inside = nil
			case inside == nil:
				next = shellBlock{page: name}
			case inside.language != "console":
				inside.commands += line + "\n"
			default:
				if command, ok := strings.CutPrefix(line, "# "); ok {
					inside.commands += command + "\n"
				}
			}
		}
	}
	return all
}

// book is a machine on which the commands of the pages are run. It has the addresses that
// the pages use, and what a page assumes.
type book struct {
	*machine
	other *daemon
}

// pod-a ── host a, 192.0.2.11 ── host b, 192.0.2.12 and .1 ── pod-b
//
//	systemd and the page           twilld with etcd
func openBook(t testing.TB) *book {
	t.Helper()
	l := newLab(t, labOptions{Options: netlab.Options{Hosts: 2}, idle: true})
	for i, addresses := range [][]string{{"192.0.2.11/24"}, {"192.0.2.12/24", "192.0.2.1/24"}} {
		l.dropIPv4(l.Hosts[i])
		for _, a := range addresses {
			addAddr(t, l.Hosts[i].NS, netlab.UnderlayLink, netip.MustParsePrefix(a))
		}
		testkit.Must(t, l.Hosts[i].NS.Command(t.Context(), "ip", "route", "add", "default", "via", "192.0.2.1").Run())
	}
	b := l.daemons[1]
	b.args = slices.DeleteFunc(b.args, func(a string) bool { return strings.HasPrefix(a, "--lease-file=") })
	b.args = append(b.args, "--public-ip=192.0.2.12", "--embedded-etcd="+filepath.Join(scratchDir(t), "etcd"),
		"--embedded-etcd-listen=192.0.2.1", "--embedded-etcd-plaintext")
	b.previous = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.2.1/24\n"
	b.start()
	testkit.Eventually(t, "the etcd is running", func() bool {
		return strings.Contains(b.stderr.String(), "twill config set")
	})
	set := b.ns.Command(t.Context(), bin("twill"), "config", "set", "--etcd-endpoints=http://192.0.2.1:2379")
	set.Stdin = strings.NewReader(`{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}`)
	testkit.Must(t, set.Run())
	b.waitReady()
	reserve := b.ns.Command(t.Context(), bin("twill"), "reserve", "--etcd-endpoints=http://192.0.2.1:2379", "--public-ip=192.0.2.11", "10.5.1.0/24")
	testkit.Must(t, reserve.Run())

	m := &book{boot(t, l.Hosts[0].NS), b}
	root := filepath.Join("..", "..", "..")
	etcdctl, err := etcdtest.Binary("etcdctl")
	testkit.Must(t, err)
	inside := filepath.Join("/proc", m.init, "root")
	testkit.Must(t, os.CopyFS(filepath.Join(inside, "src", "deploy"), os.DirFS(filepath.Join(root, "deploy"))))
	for _, name := range []string{"twilld", "twill", "twill-lab"} {
		m.write(filepath.Join("/src/bin", name), textOf(t, bin(name)))
	}
	m.write("/usr/local/bin/twill", textOf(t, bin("twill")))
	m.write("/usr/local/bin/etcdctl", textOf(t, etcdctl))
	m.write("/page/twilld", textOf(t, filepath.Join("testdata", "pages", "twilld")))
	m.run("sh", "-c", "umount /dev/net/tun && rm /dev/net/tun && mknod -m 666 /dev/net/tun c 10 200") // as udev makes it
	m.write("/page/ssh", "#!/bin/sh\nshift\nexec \"$@\"\n")
	return m
}

// turn prepares the machine for a page: twilld runs with etcd.
func (b *book) turn() {
	b.t.Helper()
	b.run("sh", "-c", `systemctl stop page page-successor twilld 2>/dev/null
		pkill -x twilld; while pidof -q twilld; do sleep 0.1; done
		/usr/local/bin/twilld --cleanup && rm -rf /etc/twill /var/lib/twill /run/flannel /etc/systemd/system/twilld.service.d/unprivileged.conf
		systemctl daemon-reload`)
	b.write("/etc/twill/leases.json", textOf(b.t, filepath.Join("..", "..", "..", "deploy", "examples", "lease-file", "leases.json")))
	b.write("/etc/twill/twilld.env", "FLANNELD_ETCD_ENDPOINTS=http://192.0.2.1:2379\n")
	b.try("twilld --etcd-endpoints=http://192.0.2.1:2379")
	b.ready()
}

// try runs commands as a reader of the page does, and returns what they print. A daemon that
// they start may outlive them.
func (b *book) try(commands string) (string, error) {
	b.t.Helper()
	cmd := b.command("env", "-C", "/src", "PATH=/page:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
		"ETCDCTL_ENDPOINTS=http://192.0.2.1:2379", "timeout", fmt.Sprint(testkit.Patience.Seconds()),
		"bash", "-euo", "pipefail", "-c", "exec >/page/printed 2>&1\n"+commands)
	err := cmd.Run()
	return textOf(b.t, filepath.Join("/proc", b.init, "root", "page", "printed")), err
}

// ready waits until the twilld on the machine is.
func (b *book) ready() {
	b.t.Helper()
	socket := filepath.Join("/proc", b.init, "root", status.DefaultSocket)
	testkit.Eventually(b.t, "twilld is ready", func() bool {
		doc, err := status.Fetch(context.Background(), socket)
		return err == nil && doc.Waiting == ""
	}, func() string { return b.run("journalctl", "--no-pager", "--output=cat") })
}

// words returns the programs with their arguments that commands would run. The shell of
// the machine expands them, and finds no program.
func (b *book) words(commands string) (all [][]string) {
	b.t.Helper()
	const find = `command_not_found_handle() { printf '%s\0' $# "$@" >&9; }
		for p in bin/twill-lab scripts/dependency-size.sh; do eval "function $p { command_not_found_handle $p \"\$@\"; }"; done
		PATH=/nonexistent`
	cmd := b.command("env", "-C", "/src", "bash", "-c", "exec 9>&1 >/dev/null\n"+find+"\n"+commands)
	out, _ := cmd.Output() // a command that is only parsed has no effect that the next could rely on
	rest := strings.Split(string(out), "\x00")
	for len(rest) > 1 {
		var n int
		if _, err := fmt.Sscan(rest[0], &n); err != nil || n >= len(rest) {
			b.t.Fatalf("%q is not the list of programs in\n%s", out, commands)
		}
		all, rest = append(all, rest[1:n+1]), rest[n+1:]
	}
	return all
}

// refused returns why a program rejects its arguments. A parser of flags meets wrong
// ones before --help.
func refused(words []string) error {
	name, args := filepath.Base(words[0]), words[1:]
	root := filepath.Join("..", "..", "..")
	var cmd *exec.Cmd
	switch name {
	case "twill", "twilld", "twill-lab":
		cmd = exec.Command(bin(name), append(args, "--help")...)
	case "etcdctl":
		path, err := etcdtest.Binary(name)
		if err != nil {
			return err
		}
		cmd = exec.Command(path, append(args, "--help")...)
	case "make":
		cmd = exec.Command("make", append([]string{"-n", "-C", root}, args...)...)
	case "go":
		cmd = exec.Command("go", append(args[:1:1], append([]string{"-n"}, args[1:]...)...)...)
		cmd.Dir = root
	case "ssh":
		return refused(args[1:])
	case "kubectl", "kubeadm", "k3s", "helm", "dockerd", "wireshark":
		return nil // TestKubePagesHaveCommandsThatKubectlKnows, and what is not installed here
	default:
		_, err := exec.LookPath(filepath.Join(filepath.Dir(filepath.Join(root, words[0])), name))
		if !strings.Contains(words[0], "/") {
			_, err = exec.LookPath(name)
		}
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%q: %w\n%s", words, err, out)
	}
	return nil
}

func TestKubePagesHaveCommandsThatKubectlKnows(t *testing.T) {
	t.Parallel()
	kubectl := filepath.Join("..", "..", "..", "bin", "peers", "kubernetes", "kubectl")
	b := &book{machine: boot(t, newSite(t).NS)}
	testkit.Must(t, os.MkdirAll(filepath.Join("/proc", b.init, "root", "src"), 0o755))
	found := 0
	for _, block := range shellBlocks(t) {
		for _, w := range b.words(block.commands) {
			if w[0] != "kubectl" {
				continue
			}
			found++
			if out, err := exec.Command(kubectl, append(w[1:], "--help")...).CombinedOutput(); err != nil {
				t.Errorf("%s: %q: %v\n%s", block, w, err, out)
			}
			i := slices.Index(w, "-k")
			if i < 0 {
				continue
			}
			if out, err := exec.Command(kubectl, "kustomize", filepath.Join("..", "..", "..", w[i+1])).CombinedOutput(); err != nil {
				t.Errorf("%s: %s: %v\n%s", block, w[i+1], err, out)
			}
		}
	}
	if found < 15 {
		t.Errorf("only %d commands of kubectl were found", found)
	}
}

// Each block is run as written, in the order of its page, unless a comment says why not.
// Even then the programs must accept their arguments.
func TestShellBlocksOfThePagesDoWhatTheySay(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"), build("twill-lab", "./cmd/twill-lab"))
	b := openBook(t)
	page, ran := "", 0
	for _, block := range shellBlocks(t) {
		words := b.words(block.commands)
		if len(words) == 0 && !strings.HasPrefix(block.commands, "set ") {
			t.Errorf("%s: no command found in\n%s", block, block.commands)
		}
		for _, w := range words {
			if err := refused(w); err != nil {
				t.Errorf("%s: %v", block, err)
			}
		}
		if block.unrun != "" {
			continue
		}
		if ran++; block.page != page {
			page = block.page
			b.turn()
		}
		out, err := b.try(block.before + "\n" + block.commands)
		// What doctor, check and ping find is not a failure of the page.
		if exit := new(exec.ExitError); err != nil && (block.language == "sh" || !errors.As(err, &exit) || exit.ExitCode() != 1) {
			t.Errorf("%s: %v\n%s\n%s", block, err, block.commands, out)
		}
		if program.MatchString(block.commands) {
			b.ready()
		}
	}
	if ran < 15 {
		t.Errorf("only %d blocks were run", ran)
	}
}
