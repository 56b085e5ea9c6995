package rules

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// hangs makes a program of the lab hang whose arguments match a pattern of the shell, and returns the
// file with the numbers of the processes that do. Those that are left at the end of the
// test are killed, and one that is too late to be listed ends when the file is removed: make
// would wait for them, as they hold the pipe of its jobs.
func (l *lab) hangs(program, pattern, otherwise string) (pids string) {
	l.t.Helper()
	pids = filepath.Join(l.t.TempDir(), "pids")
	l.program(program, fmt.Sprintf(`sh -c 'case "$*" in %s) echo $$ >>%s; while [ -e %[2]s ]; do sleep 1 </dev/null >/dev/null 2>&1; done; exit 1;; esac; exec %[3]s "$@"' sh "$@"`, pattern, pids, otherwise))
	l.t.Cleanup(func() {
		for _, pid := range processes(l.t, pids) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	})
	return pids
}

// processes returns the numbers in a file of hangs, none before there is one.
func processes(t testing.TB, path string) (pids []int) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	for _, line := range strings.Fields(string(text)) {
		pid, err := strconv.Atoi(line)
		testkit.Must(t, err)
		pids = append(pids, pid)
	}
	return pids
}

// TestProgramThatHangsIsEnded: at each step, with each tool.
func TestProgramThatHangsIsEnded(t *testing.T) {
	for _, tt := range []struct {
		fl               flavour
		program, pattern string
	}{
		{iptablesNFT, "iptables", "*--version*"},
		{iptablesNFT, "iptables", "*-S*"},
		{iptablesNFT, "iptables-restore", "*--noflush*"},
		{nftTables, "nft", "*--version*"},
		{nftTables, "nft", "*--check*"},
		{nftTables, "nft", "*list\\ table*"},
		{nftTables, "nft", "-f\\ -"},
	} {
		t.Run(tt.program+" "+tt.pattern, func(t *testing.T) {
			l := newLab(t, tt.fl)
			real := l.find(tt.program)
			if tt.fl.kind != "" && tt.program != "nft" {
				real = l.find(strings.Replace(tt.program, "iptables", "iptables-"+tt.fl.kind, 1))
			}
			pids := l.hangs(tt.program, tt.pattern, real)
			w := wanted(tt.fl)
			w.IPv6 = Pods{}
			r := newRules(t, w)
			// On a busy machine another step may take as long as the timeout.
			var err error
			for r.host.timeout = 300 * time.Millisecond; r.host.timeout < testkit.Patience; r.host.timeout *= 2 {
				if err = l.ns.Do(func() error { return r.Apply(t.Context()) }); len(processes(t, pids)) > 0 {
					break
				}
			}
			if !errors.Is(err, errHangs) && !errors.Is(r.Status().Problem, errHangs) || !strings.Contains(fmt.Sprint(err), "did not exit within "+r.host.timeout.String()) {
				t.Errorf("got %v", err)
			}
			// The library that asks for the version of nft cannot be stopped.
			if tt.pattern == "*--check*" {
				return
			}
			all := processes(t, pids)
			if len(all) == 0 {
				t.Error("no program hung")
			}
			for _, pid := range all {
				testkit.Eventually(t, fmt.Sprintf("process %d is gone", pid), func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
			}
		})
	}
}

// TestEndOfTheDaemonDoesNotWaitForAProgram that hangs.
func TestEndOfTheDaemonDoesNotWaitForAProgram(t *testing.T) {
	l := newLab(t, iptablesNFT)
	pids := l.hangs("iptables", "*-S*", l.find("iptables-nft"))
	r := newRules(t, wanted(iptablesNFT))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.ns.Do(func() error { return r.Apply(ctx) }) }()
	testkit.Eventually(t, "iptables hangs", func() bool { return len(processes(t, pids)) > 0 })
	stop()
	if err := testkit.Receive(t, "Apply returns", done, func() string { return "" }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestRulesThatAreOverdueAreAProblem while the program that would check them runs.
func TestRulesThatAreOverdueAreAProblem(t *testing.T) {
	r, err := New(Config{Wanted: wanted(iptablesNFT), Resync: time.Hour, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	r.began = time.Now().Add(-overdue / 2)
	if s := r.Status(); s.Problem != nil {
		t.Errorf("early: %v", s.Problem)
	}
	r.began = time.Now().Add(-2 * overdue)
	if s := r.Status(); s.Problem == nil || !strings.Contains(s.Problem.Error(), "overdue") {
		t.Errorf("late: %v", s.Problem)
	}
}
