package rules

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
)

// The tests here need root, iptables and nft. Each has a network namespace of
// its own, and a PATH on which iptables is of one kind.

func TestMain(m *testing.M) { netlabtest.Main(m) }

// flavour is a way to make rules.
type flavour struct {
	name     string
	nftables bool
	kind     string // of the program that is called iptables
}

var (
	iptablesNFT    = flavour{"iptables-nft", false, "nft"}
	iptablesLegacy = flavour{"iptables-legacy", false, "legacy"}
	nftTables      = flavour{"nftables", true, "nft"}
)

// each runs a test with each flavour.
func each(t *testing.T, f func(t *testing.T, fl flavour)) {
	for _, fl := range []flavour{iptablesNFT, iptablesLegacy, nftTables} {
		t.Run(fl.name, func(t *testing.T) { f(t, fl) })
	}
}

// lab is a namespace and the programs that are run in it.
type lab struct {
	t   *testing.T
	ns  *netlab.Namespace
	log string // file with a line for each call of iptables and nft by the tested code
	bin string // first directory on PATH
	// path is the PATH of the machine, which run uses.
	path string
}

// newLab gives fl's programs their names, behind scripts that record how they
// are called.
func newLab(t *testing.T, fl flavour) *lab { return labIn(t, fl, netlabtest.Namespace(t, "host")) }

func labIn(t *testing.T, fl flavour, ns *netlab.Namespace) *lab {
	t.Helper()
	dir := t.TempDir()
	l := &lab{t: t, ns: ns, log: filepath.Join(dir, "calls"), bin: filepath.Join(dir, "bin"), path: os.Getenv("PATH")}
	if err := os.Mkdir(l.bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, verb := range []string{"", "-save", "-restore"} {
			l.program(f.iptables+verb, l.find(f.iptables+"-"+fl.kind+verb)+` "$@"`)
		}
	}
	l.program("nft", l.find("nft")+` "$@"`)
	t.Setenv("PATH", l.bin+":"+l.path)
	// Not the lock of the whole machine.
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(dir, "lock"))
	return l
}

// find looks a program up on the machine.
func (l *lab) find(name string) string {
	l.t.Helper()
	for _, dir := range filepath.SplitList(l.path) {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	l.t.Fatalf("%s is not installed: run scripts/install-deps.sh", name)
	return ""
}

// program puts a program on the PATH: a line of shell that takes the place of
// the shell.
func (l *lab) program(name, command string) {
	l.t.Helper()
	script := fmt.Sprintf("#!/bin/sh\necho \"${0##*/} $*\" >>%s\nexec %s\n", l.log, command)
	if err := os.WriteFile(filepath.Join(l.bin, name), []byte(script), 0o755); err != nil {
		l.t.Fatal(err)
	}
}

// calls returns how iptables and nft were called since it was asked last.
func (l *lab) calls() []string {
	l.t.Helper()
	text, err := os.ReadFile(l.log)
	if err != nil && !os.IsNotExist(err) {
		l.t.Fatal(err)
	}
	os.Remove(l.log)
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

// writes returns the calls that write, since calls or writes was asked last.
func (l *lab) writes() []string {
	var all []string
	for _, c := range l.calls() {
		read := strings.Contains(c, " -S") || strings.Contains(c, "--version") || strings.Contains(c, "-save") ||
			strings.Contains(c, "--check") || strings.Contains(c, " list ")
		if c != "" && !read {
			all = append(all, c)
		}
	}
	return all
}

// sh runs a shell script in the namespace, with the lab's programs but not in
// its log of calls.
func (l *lab) sh(script string) string {
	l.t.Helper()
	before, _ := os.ReadFile(l.log)
	cmd := l.ns.Command(context.Background(), "sh", "-e", "-c", script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	if err := os.WriteFile(l.log, before, 0o644); err != nil {
		l.t.Fatal(err)
	}
	return string(out)
}

// dump returns the tables that flannel has rules in, as the golden files have
// them.
func (l *lab) dump(fl flavour) string {
	l.t.Helper()
	if fl.nftables {
		return l.sh("nft list table ip flannel-ipv4; nft list table ip6 flannel-ipv6")
	}
	return withoutComments(l.sh(`for f in iptables ip6tables; do for t in nat filter; do $f-save -t $t; done; done`))
}

// everything is all rules of the namespace, of all tools, with the handles that
// the kernel numbers them by.
func (l *lab) everything() string {
	l.t.Helper()
	return withoutComments(l.sh(`nft -a list ruleset
for f in iptables ip6tables; do $f-legacy-save; done`))
}

// changes are the lines that two texts do not share; if they share all, the
// order differs, and it is the second text.
func changes(from, to string) string {
	var b strings.Builder
	for _, side := range []struct{ sign, these, those string }{{"-", from, to}, {"+", to, from}} {
		for line := range strings.Lines(side.these) {
			if strings.Count(side.these, line) != strings.Count(side.those, line) {
				b.WriteString(side.sign + line)
			}
		}
	}
	if b.Len() == 0 {
		return "in the order of lines:\n" + to
	}
	return b.String()
}

func withoutComments(text string) string {
	var kept []string
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// golden is what stock flannel makes for wanted: iptables-save or nft list after
// SetupAndEnsureMasqRules and SetupAndEnsureForwardRules of flannel v0.28.9.
func golden(t *testing.T, fl flavour) string {
	t.Helper()
	name := "testdata/iptables.golden"
	if fl.nftables {
		name = "testdata/nftables.golden"
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// load makes the rules of a golden file, as stock flannel leaves them.
func (l *lab) load(t *testing.T, fl flavour) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(file, []byte(golden(t, fl)), 0o644); err != nil {
		t.Fatal(err)
	}
	if fl.nftables {
		l.sh("nft -f " + file)
		return
	}
	// The first half is IPv4's.
	l.sh(fmt.Sprintf(`
awk '/^\*nat/ {n++} n == 1' %[1]s | iptables-restore
awk '/^\*nat/ {n++} n == 2' %[1]s | ip6tables-restore`, file))
}

func wanted(fl flavour) Wanted {
	return Wanted{
		NFTables: fl.nftables, Masquerade: true, RandomFully: true, Forward: true,
		IPv4: Pods{netip.MustParsePrefix("10.5.0.0/16"), netip.MustParsePrefix("10.5.1.0/24")},
		IPv6: Pods{netip.MustParsePrefix("fd00:10:5::/48"), netip.MustParsePrefix("fd00:10:5:1::/64")},
	}
}

func newRules(t *testing.T, w Wanted) *Rules {
	t.Helper()
	r, err := New(Config{Wanted: w, Resync: time.Hour, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// apply applies the rules in the lab's namespace.
func (l *lab) apply(r *Rules) {
	l.t.Helper()
	if err := l.tryApply(r); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) tryApply(r *Rules) error {
	return l.ns.Do(func() error { return r.Apply(context.Background()) })
}

// cleanUp cleans up in the lab's namespace.
func (l *lab) cleanUp() error {
	log := slog.New(slog.NewTextHandler(l.t.Output(), nil))
	return l.ns.Do(func() error { return Cleanup(context.Background(), log) })
}

func set(t *testing.T, r *Rules, w Wanted) {
	t.Helper()
	if err := r.Set(w); err != nil {
		t.Fatal(err)
	}
}
