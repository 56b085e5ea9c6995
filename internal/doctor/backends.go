package doctor

import (
	"cmp"
	"slices"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/status"
)

// Default UDP ports of the backends, if the network config names no others:
// flannel's, and that of Linux (drivers/net/vxlan, vxlan_port).
const (
	udpPort   = 8285
	vxlanPort = 8472
)

// udpHeader is the size of a UDP header in bytes (RFC 768).
const udpHeader = 8

// portOf returns the UDP port of a backend; 0 if it uses none.
func (x *examination) portOf(kind backend.Kind) int {
	switch kind {
	case backend.HostGW:
		return 0
	case backend.VXLAN:
		return cmp.Or(x.settings().VXLAN.Port, vxlanPort)
	}
	if dp := x.dataplane(); dp != nil && dp.Port != 0 {
		return int(dp.Port)
	}
	return cmp.Or(int(x.settings().UDP.Port), udpPort)
}

// settings returns the backend settings of the network config, or the zero
// Settings if it is unknown or invalid.
func (x *examination) settings() backend.Settings {
	if x.Config == nil {
		return backend.Settings{}
	}
	override := ""
	if x.Daemon != nil {
		override = x.Daemon.Backend
	}
	s, err := backend.SettingsOf(x.Config, override)
	if err != nil {
		return backend.Settings{}
	}
	return s
}

// backends returns the backends of this node, as far as known.
func (x *examination) backends() []backend.Kind {
	if x.Daemon != nil && len(x.Daemon.Backends) > 0 {
		var all []backend.Kind
		for _, w := range x.Daemon.Backends {
			all = append(all, backend.Kind(w))
		}
		return all
	}
	switch t := backend.Kind(x.settings().Type); t {
	case backend.VXLAN, backend.HostGW:
		return []backend.Kind{t}
	}
	return []backend.Kind{backend.UDP}
}

// devices returns the names of the devices that carry packets of pods; there
// may be none.
func (x *examination) devices() []string {
	dp := x.dataplane()
	if dp == nil {
		return nil
	}
	var names []string
	for _, d := range dp.Devices {
		names = append(names, d.Name)
	}
	return names
}

// deviceOf returns the name of a backend's device, or "" if it is unknown.
func (x *examination) deviceOf(kind backend.Kind) string {
	dp := x.dataplane()
	if dp == nil {
		return ""
	}
	kinds := map[backend.Kind][]string{
		backend.UDP:    {status.KindOffload, status.KindPlain, ""},
		backend.VXLAN:  {status.KindVXLAN},
		backend.HostGW: {status.KindHostGW},
	}[kind]
	for _, d := range dp.Devices {
		if slices.Contains(kinds, d.Kind) {
			return d.Name
		}
	}
	if kind == backend.HostGW && x.Daemon.Underlay != nil {
		return x.Daemon.Underlay.Name
	}
	return ""
}

// tunnels returns the names of the devices that encapsulate packets of pods.
func (x *examination) tunnels() []string {
	var names []string
	if dp := x.dataplane(); dp != nil {
		for _, d := range dp.Devices {
			if d.Kind != status.KindHostGW {
				names = append(names, d.Name)
			}
		}
	}
	return names
}
