// Package offload holds the words for switching kernel offloads: what was
// asked for, and what came of it. It is a leaf.
package offload

import "fmt"

// Switch says whether an offload is to be used.
type Switch uint8

const (
	// Auto uses the offload where a probe says that the kernel has it, and
	// stops using it when the kernel refuses it later.
	Auto Switch = iota
	// On is Auto, but it is an error if the probe fails.
	On
	// Off does not use the offload and does not probe for it.
	Off
)

var names = [...]string{Auto: "auto", On: "on", Off: "off"}

// String returns "auto", "on" or "off".
func (s Switch) String() string { return names[s] }

// Set parses a flag's value (flag.Value).
func (s *Switch) Set(v string) error {
	for i, n := range names {
		if v == n {
			*s = Switch(i)
			return nil
		}
	}
	return fmt.Errorf("%q is not one of auto, on, off", v)
}

// State is what came of a Switch.
type State struct {
	Name    string // the flag's name without dashes: "udp-gso"
	Mode    Switch
	InForce bool
	Why     string // what the kernel granted or refused
}

// Resolve turns a switch and the result of its probe into a state. probe is
// not called if s is Off; it returns a word on what was granted. The error is
// not nil only if s is On and the probe failed.
func Resolve(name string, s Switch, probe func() (granted string, err error)) (State, error) {
	st := State{Name: name, Mode: s}
	if s == Off {
		st.Why = "turned off by --" + name
		return st, nil
	}
	granted, err := probe()
	if err == nil {
		st.InForce, st.Why = true, granted
		return st, nil
	}
	st.Why = "refused: " + err.Error()
	if s == On {
		return st, fmt.Errorf("--%s=on: %w; use --%s=auto to run without it", name, err, name)
	}
	return st, nil
}
