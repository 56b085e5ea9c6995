package vxlan

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/internal/host/nlbatch"
	"github.com/twillnet/twill/internal/host/nlwatch"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/logging"
)

// Config says what a Device is to be.
type Config struct {
	Options
	// IPv6 says that the device is flannel-v6.VNI, for IPv6 pods; else it is
	// flannel.VNI.
	IPv6 bool
	// Subnets are those of this node whose peers the device reaches: one, of
	// the family of the device. Both on one device are needed where all of the
	// underlay is IPv6: the kernel refuses a second VXLAN device of the same
	// VNI, port and family of the underlay.
	Subnets []netip.Prefix
	// Networks are those of the whole cluster. Entries inside them may be
	// ours.
	Networks []netip.Prefix
	Underlay underlay.Interface
	// Local is the address of the VTEP: one of the underlay interface's. Its
	// family is that of all endpoints.
	Local netip.Addr
	// MAC is for a device that is made. One that is there keeps its own, also
	// where it must be made anew.
	MAC    net.HardwareAddr
	Logger *slog.Logger

	release string // of the kernel; empty: ask it. Tests pretend another.
}

// Device is a VXLAN device with its entries. Its methods may be called from
// several goroutines, but for Close.
type Device struct {
	cfg   Config
	name  string
	index int
	mtu   encap.TunnelMTU
	mac   net.HardwareAddr

	// All sockets are in the network namespace of the device.
	nl       *netlink.Handle
	requests nl.SocketHandle // for requests that netlink has no words for
	events   *nlwatch.Watcher
	told     told // what has been logged; Run's alone

	mu      sync.Mutex // guards all below
	batch   *nlbatch.Conn
	entries entries
	// learningFixed says that this kernel cannot change Learning.
	learningFixed bool
}

// Name returns the name of the device for a VNI.
func Name(vni int, ipv6 bool) string {
	if ipv6 {
		return fmt.Sprintf("flannel-v6.%d", vni)
	}
	return fmt.Sprintf("flannel.%d", vni)
}

// Existing returns the MAC of the device that is there from an earlier run of
// twill or stock flannel, nil if there is none. It looks in the network
// namespace of the calling thread.
func Existing(vni int, ipv6 bool) (net.HardwareAddr, error) {
	name := Name(vni, ipv6)
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up interface %s: %w", name, err)
	}
	if _, ok := link.(*netlink.Vxlan); !ok {
		return nil, nil
	}
	return link.Attrs().HardwareAddr, nil
}

// Open makes the device, or takes over the one that is there, in the network
// namespace of the calling thread, and sets what is not as it should be. A
// device of another configuration is deleted and made anew, with its MAC. On
// failure nothing is left that was not there.
func Open(cfg Config) (_ *Device, err error) {
	cfg.Local = cfg.Local.Unmap()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	d := &Device{
		cfg: cfg, name: Name(cfg.VNI, cfg.IPv6), mtu: cfg.mtu(cfg.Underlay.MTU, cfg.Local),
		entries: newEntries(),
	}
	defer func() {
		if err != nil {
			_ = d.Close()
		}
	}()
	if d.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if d.requests.Socket, err = nl.Subscribe(unix.NETLINK_ROUTE); err != nil { // to nothing
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if d.events, err = nlwatch.Open(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_NEIGH); err != nil {
		return nil, err
	}
	if d.batch, err = nlbatch.Dial(); err != nil {
		return nil, err
	}
	made, err := d.ensure()
	if err != nil {
		return nil, err
	}
	if err := d.prepare(); err != nil {
		if made {
			_ = d.Delete()
		}
		return nil, err
	}
	return d, nil
}

// check finds what cannot work before anything is touched.
func (cfg *Config) check() error {
	name := Name(cfg.VNI, cfg.IPv6)
	if !cfg.Local.IsValid() {
		return fmt.Errorf("make %s: interface %s has no address for it: give it one, or choose another with --iface", name, cfg.Underlay.Name)
	}
	if cfg.Underlay.Index <= 0 {
		return fmt.Errorf("make %s: interface %s has no index", name, cfg.Underlay.Name)
	}
	if len(cfg.Subnets) == 0 {
		return fmt.Errorf("make %s: this node has no subnet of its family", name)
	}
	if _, err := macOf(cfg.MAC); err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	ipv6 := slices.ContainsFunc(cfg.Subnets, func(s netip.Prefix) bool { return s.Addr().Is6() })
	if mtu := cfg.mtu(cfg.Underlay.MTU, cfg.Local); !mtu.Usable(ipv6) {
		return fmt.Errorf("make %s: MTU %d of interface %s leaves %d bytes for packets of pods, too few: raise it to %d or more",
			name, cfg.Underlay.MTU, cfg.Underlay.Name, mtu, int(encap.Least(ipv6))+Overhead(cfg.Local))
	}
	return nil
}

// prepare sets what is not as it should be of a device that is there.
func (d *Device) prepare() error {
	if d.cfg.MTU > d.cfg.Underlay.MTU {
		d.cfg.Logger.Warn("MTU of the network configuration is more than the interface has, which is taken",
			logging.KeyDevice, d.name, logging.KeyWas, d.cfg.MTU, logging.KeyNow, d.cfg.Underlay.MTU)
	}
	d.quietIPv6()
	if err := d.mendChecksums(); err != nil {
		return err
	}
	_, err := d.apply()
	return err
}

// Name is that of the device, "flannel.1".
func (d *Device) Name() string { return d.name }

// Index is that of the interface. It is the same until the device is deleted.
func (d *Device) Index() int { return d.index }

// MTU is that of the pods' interfaces, in bytes.
func (d *Device) MTU() int { return int(d.mtu) }

// MAC is the VtepMAC that the others must be told.
func (d *Device) MAC() net.HardwareAddr { return slices.Clone(d.mac) }

// Local is the address of this end of the tunnels.
func (d *Device) Local() netip.Addr { return d.cfg.Local }

// Delete removes the device, and with it its entries and the routes over it. A
// device that is gone already is no error. Close is still to be called.
func (d *Device) Delete() error {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: d.index}}
	if err := d.nl.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface %s: %w", d.name, err)
	}
	return nil
}

// Close lets go of the device, which stays with all its entries: the pods keep
// talking. Nothing else may run at the same time; Run has returned, if it was
// called.
func (d *Device) Close() error {
	if d.nl != nil {
		d.nl.Close()
	}
	if d.requests.Socket != nil {
		d.requests.Socket.Close()
	}
	if d.events != nil {
		d.events.Close()
	}
	if d.batch == nil {
		return nil
	}
	return d.batch.Close()
}
