package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/command"
)

func TestLaboratoryCommandsNameWhatIsWrong(t *testing.T) {
	for _, tc := range []struct {
		args string
		want string
	}{
		{"", "no command given; commands are demo, tour, up, status, exec, down, ping, bench, completion, version"},
		{"dwon", `unknown command "dwon"; commands are demo, tour, up,`},
		{"down now", `down: unexpected argument "now"`},
		{"ping", "ping: want one address"},
		{"ping --interval=0 127.0.0.1", "ping: want an interval above 0"},
		{"ping pod-a", "ping: ParseAddr"},
		{"exec pod-a", "exec: want a place (a, b, pod-a, pod-b) and a command"},
		{"up --wire=long", `up: unknown wire "long"; want super or mtu`},
		{"bench --wire=long", `bench: unknown wire "long"; want one of super,mtu,super+loss,mtu+loss`},
		{"bench --paths=twill,vxlna", `bench: unknown path "vxlna"; want one of twill,`},
		{"bench --loads=tcp2", `bench: unknown load "tcp2"; want one of ping,`},
		{"bench --rounds=0", "bench: want at least 1 round"},
		{"bench --seconds=0.01", "want at least 0.1 --seconds"},
		{"bench --page=docs/performance.md", "--page needs --out"},
		{"tour now", `tour: unexpected argument "now"`},
		{"demo now", `demo: unexpected argument "now"`},
	} {
		err := program.Run(t.Context(), strings.Fields(tc.args), &bytes.Buffer{}, &bytes.Buffer{})
		var usage *command.UsageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("twill-lab %s: got %v, want a usage error with %q", tc.args, err, tc.want)
		}
	}
}
