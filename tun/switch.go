package tun

import "fmt"

// Switch selects whether to use a kernel offload. It is a flag.Value.
type Switch uint8

const (
	// Auto uses the offload if a probe finds that the kernel supports it, and
	// stops using it if the kernel refuses it later.
	Auto Switch = iota
	// On is like Auto, except that a failed probe is an error.
	On
	// Off neither uses the offload nor probes for it.
	Off
)

var switchNames = [...]string{Auto: "auto", On: "on", Off: "off"}

// String returns "auto", "on" or "off".
func (s Switch) String() string { return switchNames[s] }

// Set parses a flag's value (flag.Value).
func (s *Switch) Set(v string) error {
	for i, n := range switchNames {
		if v == n {
			*s = Switch(i)
			return nil
		}
	}
	return fmt.Errorf("%q is not one of auto, on, off", v)
}

// Offload is the state of one offload: what was requested, and whether the
// kernel granted it.
type Offload struct {
	Name    string // the flag's name without dashes: "udp-gso"
	Mode    Switch
	InForce bool
	Why     string // what the kernel granted or refused
}

// Resolve combines the switch of the offload name and the result of its probe into
// a state. probe describes what was granted; it is not called if s is Off. The
// error is non-nil only if s is On and the probe failed.
func (s Switch) Resolve(name string, probe func() (granted string, err error)) (Offload, error) {
	o := Offload{Name: name, Mode: s}
	if s == Off {
		o.Why = "turned off by --" + name
		return o, nil
	}
	granted, err := probe()
	if err == nil {
		o.InForce, o.Why = true, granted
		return o, nil
	}
	o.Why = "refused: " + err.Error()
	if s == On {
		return o, fmt.Errorf("--%s=on: %w; use --%s=auto to run without it", name, err, name)
	}
	return o, nil
}
