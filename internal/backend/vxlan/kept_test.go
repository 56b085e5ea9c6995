package vxlan

import (
	"cmp"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/keep"
	"github.com/twillnet/twill/internal/host/underlay"
)

// setup is what a test gives the device.
type setup struct {
	Options
	IPv6              bool
	Subnets, Networks []netip.Prefix
	Underlay          underlay.Interface
	Local             netip.Addr
	MAC               net.HardwareAddr // of a device that is made
	Logger            *slog.Logger
	release           string // of the kernel
}

// kept is a device that a Keeper has, with its peers.
type kept struct {
	*keep.Keeper
	Device
	setup  setup
	index  int
	shared []Peer // what AddPeers returned last
	peers  []Peer // the one that changed last at the end
}

// openKept opens the device. One that is there keeps its MAC, as its lease
// announces it.
func openKept(s setup) (_ *kept, err error) {
	k := &kept{Device: Device{Options: s.Options, IPv6: s.IPv6, Subnets: s.Subnets, Underlay: s.Underlay, Local: s.Local, MAC: s.MAC}, setup: s}
	if err := k.Check(); err != nil {
		return nil, err
	}
	there, err := Existing(s.VNI, s.IPv6)
	if err != nil {
		return nil, err
	}
	if there != nil {
		k.MAC = there
	}
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	k.Keeper, err = keep.Open(keep.Config{
		Networks: s.Networks, Subnets: s.Subnets, Owned: Names, Record: filepath.Join(dir, "record"), Logger: s.Logger,
	})
	if err != nil {
		return nil, err
	}
	if err := k.Ensure(k.Link(cmp.Or(k.setup.release, "6.1"))); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	link, err := netlink.LinkByName(k.Name())
	if err != nil {
		return nil, errors.Join(err, k.Close())
	}
	k.index = link.Attrs().Index
	return k, nil
}

// set makes the peers those of the device.
func (k *kept) set() error {
	s := keep.State{Links: []keep.Link{k.Link(cmp.Or(k.setup.release, "6.1"))}}
	k.shared = k.AddPeers(&s, k.peers)
	if !k.Set(s) {
		return errors.New("not all was done")
	}
	return nil
}

// add makes the peers known. One takes the place of another with its subnet.
func (k *kept) add(peers ...Peer) error {
	for _, p := range peers {
		i := slices.IndexFunc(k.peers, func(o Peer) bool { return o.Subnet == p.Subnet })
		if i >= 0 && k.peers[i].Endpoint == p.Endpoint && slices.Equal(k.peers[i].MAC, p.MAC) {
			continue
		}
		if i >= 0 {
			k.peers = slices.Delete(k.peers, i, i+1)
		}
		k.peers = append(k.peers, p)
	}
	return k.set()
}

// retain forgets all peers but those with the subnets of these.
func (k *kept) retain(peers ...Peer) error {
	k.peers = slices.DeleteFunc(k.peers, func(o Peer) bool {
		return !slices.ContainsFunc(peers, func(p Peer) bool { return p.Subnet == o.Subnet })
	})
	return k.set()
}

// Index is the number of the device.
func (k *kept) Index() int { return k.index }

// Delete deletes the device. It is not an error if it is already gone.
func (k *kept) Delete() error {
	err := netlink.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: k.index}})
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
