package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestLaboratoryCommandsNameWhatIsWrong(t *testing.T) {
	for _, tc := range []struct {
		args string
		want string
	}{
		{"lab", "lab: up, status, exec or down?"},
		{"lab dwon", `lab: unknown command "dwon"`},
		{"lab down now", `lab down: unexpected argument "now"`},
		{"lab exec pod-a", "want a place (a, b, pod-a, pod-b) and a command"},
		{"lab up --wire=long", `lab up: unknown wire "long"; there are super and mtu`},
		{"bench --wire=long", `bench: unknown wire "long"; there are super,mtu,super+loss,mtu+loss`},
		{"bench --paths=twill,vxlna", `bench: unknown path "vxlna"; there are twill,`},
		{"bench --loads=tcp2", `bench: unknown load "tcp2"; there are ping,`},
		{"bench --rounds=0", "bench: want at least 1 round"},
		{"bench --seconds=0.01", "want at least 0.1 --seconds"},
		{"bench --page=docs/performance.md", "--page needs --out"},
		{"demo now", `demo: unexpected argument "now"`},
	} {
		err := run(t.Context(), strings.Fields(tc.args), &bytes.Buffer{}, &bytes.Buffer{})
		var usage *usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("twill %s: got %v, want a usage error with %q", tc.args, err, tc.want)
		}
	}
}
