//go:build !noembed

package embedetcd

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/zap"
)

func TestWarningsOfARunningEtcdGoToOurLog(t *testing.T) {
	var out bytes.Buffer
	c := newCore(slog.New(slog.NewTextHandler(&out, nil)))
	log := c.logger().With(zap.String("member", "m0"))
	c.enter(running)
	log.Info("not worth a line")
	log.Warn("slow disk", zap.Int("ms", 12))
	log.Error("no space", zap.Error(errors.New("disk full")))
	want := []string{
		`level=WARN msg="embedded etcd" why="slow disk (member: m0, ms: 12)"`,
		`level=ERROR msg="embedded etcd" why="no space (error: disk full, member: m0)"`,
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != len(want) {
		t.Fatalf("log:\n%s", &out)
	}
	for i := range want {
		if !strings.HasSuffix(lines[i], want[i]) {
			t.Errorf("line %d: %s, want %s", i, lines[i], want[i])
		}
	}
}

func TestErrorsOfAStartGoIntoWhatItReturns(t *testing.T) {
	var out bytes.Buffer
	c := newCore(slog.New(slog.NewTextHandler(&out, nil)))
	c.logger().Error("cannot read", zap.String("path", "db"))
	if err := c.explain(errors.New("it stopped")); err.Error() != "it stopped: cannot read (path: db)" {
		t.Errorf("%v", err)
	}
	go c.logger().Fatal("cannot go on", zap.Error(syscall.ENOSPC))
	<-c.dead
	if c.why != "cannot go on (error: no space left on device)" || c.cause != syscall.ENOSPC {
		t.Errorf("%s, %v", c.why, c.cause)
	}
	if out.Len() > 0 {
		t.Errorf("log:\n%s", &out)
	}
}
