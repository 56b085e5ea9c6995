//go:build !noetcd

package etcd

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestGRPCWritesToOurLog(t *testing.T) {
	var out bytes.Buffer
	log := newGRPCLog(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	log.Infof("not worth a line")
	log.Warningf("cannot dial %s", "10.0.0.1:2379")
	log.Errorf("got GoAway: %s", "ERROR: too_many_pings")
	want := []string{
		`level=DEBUG msg=gRPC why="cannot dial 10.0.0.1:2379"`,
		`level=WARN msg=gRPC why="got GoAway: ERROR: too_many_pings"`,
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
