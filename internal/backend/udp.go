package backend

import (
	"fmt"
	"math"

	"github.com/twillnet/twill/lease"
)

// UDPOptions are the options of the network configuration for the udp backend.
type UDPOptions struct {
	// Port is the UDP port of all nodes: "Port" if the configuration names this
	// backend, "UDPPort" if it names another one and this backend is the
	// fallback.
	Port uint16
	// MTU is that of the underlay path, in bytes including the outer IP header;
	// 0: the interface's.
	MTU int
	// DirectRouting asks for plain routes to peers on the same link.
	DirectRouting bool
}

// defaultUDPPort is flannel's default.
const defaultUDPPort = 8285

// KernelPathFlag is the flag for the kernel path of the udp backend, without dashes; the
// status and the metrics have it under this name.
const KernelPathFlag = "kernel-path"

// KernelInput returns the name of the interface that packets from the kernel path arrive on,
// instead of the TUN device tun.
func KernelInput(tun string) string { return tun + "-rx" }

// udpOptionsOf returns the options of c. The error names the option that is
// invalid.
func udpOptionsOf(c *lease.Config) (UDPOptions, error) {
	o := struct {
		Port, UDPPort, MTU int
		DirectRouting      bool
	}{Port: defaultUDPPort, UDPPort: defaultUDPPort}
	if err := c.Backend.Decode(&o); err != nil {
		return UDPOptions{}, err
	}
	key, port := "Port", o.Port
	if c.Backend.Type != "udp" {
		key, port = "UDPPort", o.UDPPort
	}
	if port < 1 || port > math.MaxUint16 {
		return UDPOptions{}, fmt.Errorf("network config: Backend.%s is %d; want 1 to 65535, or leave it out for %d", key, port, defaultUDPPort)
	}
	if o.MTU < 0 || o.MTU > math.MaxUint16 {
		return UDPOptions{}, fmt.Errorf("network config: Backend.MTU is %d; want 1 to 65535, or leave it out for that of the interface", o.MTU)
	}
	return UDPOptions{Port: uint16(port), MTU: o.MTU, DirectRouting: o.DirectRouting}, nil
}
