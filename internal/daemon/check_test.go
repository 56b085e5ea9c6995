package daemon

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/lab/testkit"
)

func TestCheckSaysWhetherTheDaemonWouldStart(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault func(t *testing.T, h *rig)
		want  []string // lines begin with them
		fails bool
	}{
		{"nothing wrong", nil, []string{"ok   config", "ok   backends", "ok   interface eth0"}, false},
		{"kernel path", func(_ *testing.T, h *rig) { h.options.kernelPath = udp.KernelPathTC }, []string{"ok   kernel-path the self-test passed", "ok   config"}, false},
		{"no lease file", func(t *testing.T, h *rig) { testkit.Must(t, os.Remove(h.options.leaseFile)) }, []string{"bad  store"}, true},
		{"a config that is none", func(t *testing.T, h *rig) { h.write(t, `{"config": {"Network": "10.5.0.0/99"}}`) }, []string{"bad  "}, true},
		{"no such backend here", func(t *testing.T, h *rig) {
			h.write(t, strings.Replace(twoNodes, `"Type": "udp"`, `"Type": "vxlan"`, 1))
			h.options.backend = "vxlan"
		}, []string{"bad  config    vxlan: no VXLAN in a test"}, true},
		{"no interface", func(_ *testing.T, h *rig) {
			h.choose = func(underlay.Options) (underlay.Interface, error) {
				return underlay.Interface{}, errors.New("no such interface")
			}
		}, []string{"ok   backends", "bad  interface no such interface"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newRig(t)
			if tt.fault != nil {
				tt.fault(t, h)
			}
			var out bytes.Buffer
			if err := h.daemon.check(t.Context(), &out); (err != nil) != tt.fails {
				t.Errorf("error %v", err)
			}
			for _, want := range tt.want {
				if !strings.Contains("\n"+out.String(), "\n"+want) {
					t.Errorf("no line with %q in\n%s", want, out.String())
				}
			}
			if _, err := os.Stat(h.options.subnetFile); err == nil {
				t.Error("a subnet file was written")
			}
		})
	}
}
