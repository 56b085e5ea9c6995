package tun

import (
	"errors"
	"strings"
	"testing"
)

func TestSwitchReadsWhatItWrites(t *testing.T) {
	for _, s := range []Switch{Auto, On, Off} {
		got := Switch(99)
		if err := got.Set(s.String()); err != nil || got != s {
			t.Errorf("Set(%q): %v, %v", s, got, err)
		}
	}
	if s := Switch(0); s.String() != "auto" {
		t.Errorf("the zero Switch is %q", s)
	}
}

func TestSwitchRefusesOtherWordsAndKeepsItsValue(t *testing.T) {
	for _, v := range []string{"", "ON", "true", "1", "auto "} {
		s := Off
		err := s.Set(v)
		if err == nil || s != Off {
			t.Errorf("Set(%q): %v, %v", v, s, err)
			continue
		}
		for _, word := range []string{"auto", "on", "off"} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("Set(%q): %q does not offer %q", v, err, word)
			}
		}
	}
}

func TestResolve(t *testing.T) {
	refusal := errors.New("not on this kernel")
	for _, tt := range []struct {
		name    string
		mode    Switch
		probe   error
		inForce bool
		why     string
		err     string // part of it; empty: none
		probes  int
	}{
		{"auto, granted", Auto, nil, true, "granted: all", "", 1},
		{"auto, refused", Auto, refusal, false, "refused: not on this kernel", "", 1},
		{"on, granted", On, nil, true, "granted: all", "", 1},
		{"on, refused", On, refusal, false, "refused: not on this kernel", "--udp-gso=auto", 1},
		{"off", Off, refusal, false, "turned off by --udp-gso", "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			probes := 0
			st, err := tt.mode.Resolve("udp-gso", func() (string, error) {
				probes++
				return "granted: all", tt.probe
			})
			if want := (Offload{Name: "udp-gso", Mode: tt.mode, InForce: tt.inForce, Why: tt.why}); st != want {
				t.Errorf("got %+v, want %+v", st, want)
			}
			if probes != tt.probes {
				t.Errorf("probed %d times, want %d", probes, tt.probes)
			}
			switch {
			case tt.err == "":
				if err != nil {
					t.Error(err)
				}
			case err == nil || !errors.Is(err, refusal) || !strings.Contains(err.Error(), tt.err):
				t.Errorf("error %v does not wrap the refusal and offer %q", err, tt.err)
			}
		})
	}
}
