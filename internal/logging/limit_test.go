package logging

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Whoever meets a limit of open files learns its name, also from errors of which a client or
// a program has passed on the text alone.
func TestErrorsOfTheLimitOfOpenFilesNameIt(t *testing.T) {
	for _, tt := range []struct {
		err  error
		says string // "" if it is not caused by a limit
	}{
		{fmt.Errorf("open TUN device: %w", &os.PathError{Op: "open", Path: "/dev/net/tun", Err: unix.EMFILE}), "LimitNOFILE="},
		{errors.Join(errors.New("a"), os.NewSyscallError("socket", unix.EMFILE)), "RLIMIT_NOFILE) is "},
		{errors.New("rpc error: dial tcp 127.0.0.1:2379: socket: too many open files"), "256 suffice"},
		{errors.New("iptables: Could not open socket to kernel: Too many open files"), "ulimit -n"},
		{fmt.Errorf("list links: %w", unix.ENFILE), "fs.file-max"},
		{errors.New("fork/exec /usr/sbin/nft: too many open files in system"), "fs.file-max"},
		{fmt.Errorf("open: %w", unix.EACCES), ""},
		{nil, ""},
	} {
		got := Explain(tt.err)
		if !errors.Is(got, tt.err) || tt.says == "" && got != tt.err || tt.says != "" && !strings.Contains(got.Error(), tt.says) {
			t.Errorf("%v: got %v", tt.err, got)
		}
		for _, f := range []Format{Text, JSON} {
			var b bytes.Buffer
			New(&b, f, slog.LevelInfo).Error("failed", KeyError, tt.err)
			if !strings.Contains(b.String(), tt.says) || tt.says == "" && strings.Contains(b.String(), ";") {
				t.Errorf("%v: log: %s", tt.err, &b)
			}
			if tt.err == nil {
				continue
			}
			b.Reset()
			New(&b, f, slog.LevelInfo).Error("failed", KeyError, tt.err.Error())
			if !strings.Contains(b.String(), tt.says) {
				t.Errorf("%v: log of the text: %s", tt.err, &b)
			}
		}
	}
}
