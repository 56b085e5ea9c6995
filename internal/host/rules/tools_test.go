package rules

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/testkit"
)

func TestMissingProgramIsNamedWithWhatToDo(t *testing.T) {
	for _, tt := range []struct {
		name     string
		nftables bool
		remove   []string
		want     []string
	}{
		{"iptables", false, []string{"iptables"}, []string{"IPv4 rules: find iptables", "install iptables", "EnableNFTables"}},
		{"iptables-restore", false, []string{"iptables-restore"}, []string{"IPv4 rules: find iptables-restore", "install iptables"}},
		{"ip6tables", false, []string{"ip6tables"}, []string{"IPv6 rules: find ip6tables", "install iptables"}},
		{"nft", true, []string{"nft"}, []string{"IPv4 rules: find nft", "IPv6 rules: find nft", "install nftables"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fl := flavour{nftables: tt.nftables, kind: "nft"}
			l := newLab(t, fl)
			t.Setenv("PATH", l.bin+":/bin/none")
			l.program("iptables", l.find("iptables-nft")+` "$@"`)
			for _, p := range tt.remove {
				if err := os.Remove(filepath.Join(l.bin, p)); err != nil {
					t.Fatal(err)
				}
			}
			err := l.tryApply(newRules(t, wanted(fl)))
			for _, want := range tt.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
		})
	}
}

func TestOneFamilysTroubleDoesNotKeepTheOtherFromItsRules(t *testing.T) {
	l := newLab(t, iptablesNFT)
	l.program("ip6tables", `sh -c 'case "$*" in *--version*) echo "ip6tables v1.8.9 (nf_tables)";; *) echo "boom" >&2; exit 3;; esac' sh "$@"`)
	r := newRules(t, wanted(iptablesNFT))
	err := l.tryApply(r)
	if err == nil || !strings.Contains(err.Error(), "IPv6 rules: read nat POSTROUTING with ip6tables") || !strings.Contains(err.Error(), "boom") {
		t.Errorf("got %v", err)
	}
	if got := r.Status().Problem; got != err {
		t.Errorf("status says %v", got)
	}
	if got := l.sh("iptables-nft-save -t nat"); !strings.Contains(got, "10.5.1.0/24") {
		t.Errorf("no IPv4 rules\n%s", got)
	}
}

func TestIPv6OffInTheKernelIsNamed(t *testing.T) {
	l := newLab(t, iptablesNFT)
	l.program("ip6tables", `sh -c 'case "$*" in *--version*) echo "ip6tables v1.8.9 (legacy)";; *)
		echo "can'"\\''"'t initialize ip6tables table: Address family not supported by protocol" >&2; exit 3;; esac' sh "$@"`)
	r := newRules(t, wanted(iptablesNFT))
	r.host.procNet = t.TempDir() // as where IPv6 is off: no if_inet6
	err := l.tryApply(r)
	if err == nil || !strings.Contains(err.Error(), "IPv6 is disabled in this kernel") || !strings.Contains(err.Error(), "EnableIPv6") {
		t.Errorf("got %v", err)
	}
	w := wanted(iptablesNFT)
	w.IPv6 = Pods{}
	set(t, r, w)
	l.apply(r) // and without IPv6 in the network there is no error
}

func TestNFTablesNeedsNoIPTables(t *testing.T) {
	l := newLab(t, nftTables)
	for _, p := range []string{"iptables", "ip6tables"} {
		if err := errors.Join(os.Remove(filepath.Join(l.bin, p)), os.Remove(filepath.Join(l.bin, p+"-restore"))); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", l.bin+":/bin/none")
	l.program("nft", l.find("nft")+` "$@"`)
	err := l.tryApply(newRules(t, wanted(nftTables)))
	t.Setenv("PATH", l.path)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := l.dump(nftTables), golden(t, nftTables); got != want {
		t.Errorf("changes from what is wanted\n%s", changes(want, got))
	}
}

func TestPortsAreChosenAtRandomOnlyWhereThatIsWantedAndKnown(t *testing.T) {
	for _, tt := range []struct {
		name   string
		fl     flavour
		tool   func(l *lab)
		random bool
		want   bool
	}{
		{"iptables", iptablesNFT, func(*lab) {}, true, true},
		{"iptables, not wanted", iptablesNFT, func(*lab) {}, false, false},
		{"iptables before 1.6.2", iptablesLegacy, func(l *lab) {
			l.program("iptables", `sh -c '[ "$*" = --version ] && echo "iptables v1.6.1" || exec `+l.find("iptables-legacy")+` "$@"' sh "$@"`)
		}, true, false},
		{"nftables", nftTables, func(*lab) {}, true, true},
		{"nftables, not wanted", nftTables, func(*lab) {}, false, false},
		{"nftables of a kernel without", nftTables, func(l *lab) {
			l.program("nft", `sh -c 'case "$*" in *"-f -"*) in=$(cat); case "$in" in *fully-random*) echo "Error: Could not process rule: Operation not supported" >&2; exit 1;; esac
				echo "$in" | `+l.find("nft")+` "$@";; *) exec `+l.find("nft")+` "$@";; esac' sh "$@"`)
		}, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t, tt.fl)
			tt.tool(l)
			w := wanted(tt.fl)
			w.RandomFully, w.IPv6 = tt.random, Pods{}
			l.apply(newRules(t, w))
			got := l.sh("iptables-legacy-save; iptables-nft-save; nft list ruleset")
			if strings.Count(strings.ToLower(got), "masquerade") < 2 {
				t.Fatalf("no masquerading\n%s", got)
			}
			if strings.Contains(got, "fully") != tt.want {
				t.Errorf("at random: want %t\n%s", tt.want, got)
			}
		})
	}
}

// TestXtablesLockIsWaitedFor: another program holds the lock while the rules are
// to be written, and then releases it.
func TestXtablesLockIsWaitedFor(t *testing.T) {
	l := newLab(t, iptablesLegacy)
	lock := holdLock(t)
	applied := make(chan error, 1)
	go func() { applied <- l.tryApply(newRules(t, wanted(iptablesLegacy))) }()
	testkit.Eventually(t, "iptables is called", func() bool {
		text, _ := os.ReadFile(l.log)
		return strings.Contains(string(text), "iptables -t nat -S")
	})
	select {
	case err := <-applied:
		t.Fatalf("did not wait: %v", err)
	default:
	}
	lock.Close()
	if err := <-applied; err != nil {
		t.Fatal(err)
	}
	if got, want := l.dump(iptablesLegacy), golden(t, iptablesLegacy); got != want {
		t.Errorf("changes from what is wanted\n%s", changes(want, got))
	}
}

func TestXtablesLockThatIsHeldIsNamed(t *testing.T) {
	l := newLab(t, iptablesLegacy)
	defer holdLock(t).Close()
	w := wanted(iptablesLegacy)
	w.IPv6 = Pods{}
	err := l.tryApply(newRules(t, w))
	if err == nil || !strings.Contains(err.Error(), "holding the xtables lock") || !strings.Contains(err.Error(), "fuser -v") {
		t.Errorf("got %v", err)
	}
}

func holdLock(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(os.Getenv("XTABLES_LOCKFILE"))
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestOthersMayWriteAtTheSameTime: while the rules are broken and written over and
// over, another program changes the same chains.
func TestOthersMayWriteAtTheSameTime(t *testing.T) {
	for _, fl := range []flavour{iptablesNFT, iptablesLegacy} {
		t.Run(fl.name, func(t *testing.T) {
			l := newLab(t, fl)
			r := newRules(t, wanted(fl))
			l.apply(r)
			busy := filepath.Join(t.TempDir(), "busy")
			if err := os.WriteFile(busy, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			const rule = `POSTROUTING -s 192.0.2.1 -m comment --comment "not flannel's" -j ACCEPT`
			script := fmt.Sprintf("set -e; while [ -e %s ]; do iptables -w -t nat -I %s; iptables -w -t nat -D %[2]s; done", busy, rule)
			other := make(chan error, 1)
			go func() { other <- l.ns.Command(t.Context(), "sh", "-c", script).Run() }()
			for range 20 {
				l.sh(`iptables -w -t nat -F FLANNEL-POSTRTG
					iptables -w -t nat -A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG`)
				l.apply(r)
			}
			if err := os.Remove(busy); err != nil {
				t.Fatal(err)
			}
			if err := <-other; err != nil {
				t.Errorf("the other's rule was lost: %v", err)
			}
			if got, want := l.dump(fl), golden(t, fl); got != want {
				t.Errorf("changes from what is wanted\n%s", changes(want, got))
			}
		})
	}
}

func TestRunPutsBackWhatIsDeleted(t *testing.T) {
	each(t, func(t *testing.T, fl flavour) {
		l := newLab(t, fl)
		r := newRules(t, wanted(fl))
		r.resync = 20 * time.Millisecond
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.ns.Do(func() error { return r.Run(ctx) }) }()
		defer func() {
			stop()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("Run: %v", err)
			}
		}()
		right := func() bool { return l.dumpOf(fl) == golden(t, fl) }
		testkit.Eventually(t, "the rules are there", right)
		for range 3 {
			if fl.nftables {
				l.sh("nft flush chain ip flannel-ipv4 postrtg")
			} else {
				l.sh("iptables -w -t nat -F FLANNEL-POSTRTG; iptables -w -t nat -F POSTROUTING")
			}
			testkit.Eventually(t, "the rules are back", right)
		}
	})
}

func TestRunFollowsWhatIsSetAtOnce(t *testing.T) {
	l := newLab(t, nftTables)
	r := newRules(t, wanted(nftTables)) // resyncs once an hour
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.ns.Do(func() error { return r.Run(ctx) }) }()
	testkit.Eventually(t, "the rules are there", func() bool { return strings.Contains(l.dumpOf(nftTables), "10.5.1.0/24") })
	w := wanted(nftTables)
	w.IPv4.Subnet = netip.MustParsePrefix("10.5.9.0/24")
	set(t, r, w)
	testkit.Eventually(t, "the rules follow", func() bool { return strings.Contains(l.dumpOf(nftTables), "10.5.9.0/24") })
	stop()
	<-done
}

// TestRunReportsAProblemOnce: what fails each time is logged once, and so is its
// end.
func TestRunReportsAProblemOnce(t *testing.T) {
	l := newLab(t, iptablesNFT)
	broken := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(broken, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	l.program("iptables", fmt.Sprintf(`sh -c 'if [ -e %s ]; then echo boom >&2; exit 3; fi; exec %s "$@"' sh "$@"`, broken, l.find("iptables-nft")))
	w := wanted(iptablesNFT)
	w.IPv6 = Pods{}
	var log lockedBuffer
	r, err := New(Config{Wanted: w, Resync: 5 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.ns.Do(func() error { return r.Run(ctx) }) }()
	testkit.Eventually(t, "ten attempts", func() bool {
		text, _ := os.ReadFile(l.log)
		return strings.Count(string(text), "--version") >= 10
	})
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the problem is over", func() bool { return strings.Contains(log.String(), "applied again") })
	stop()
	<-done
	if n := strings.Count(log.String(), "cannot apply firewall rules"); n != 1 {
		t.Errorf("%d lines in\n%s", n, log.String())
	}
	if s := r.Status(); s.Problem != nil || s.Checked.IsZero() || s.Written == 0 {
		t.Errorf("status %+v", s)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
