package daemon

import (
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/host/capability"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/tun"
)

// A twilld started by root has all capabilities and needs few. It gives up the others in
// two steps: most when it starts, and those that only opening requires once the node is
// ready for the first time. Capabilities that a changed network configuration may require
// stay, since the data plane is then opened again. Other flags require a new process, which
// has its own capabilities.

// stage is the stage of a run in which capabilities are needed.
type stage int

const (
	opening stage = iota // until the node is ready for the first time
	running
)

// needs returns those of the capabilities in has that the daemon needs from the stage on.
func (d *daemon) needs(from stage, has capability.Set) (needed capability.Set) {
	o := d.options
	firewall := o.ipMasq || o.forwardRules
	for _, n := range []struct {
		capability int
		needed     bool
	}{
		{unix.CAP_NET_ADMIN, true}, // devices, addresses, routes, rules
		// Raw sockets: legacy iptables' access to its tables, also to remove what earlier
		// runs left, and echo requests.
		{unix.CAP_NET_RAW, from == opening || firewall || o.switches.MTUProbes != tun.Off || o.probeInterval > 0},
		{unix.CAP_NET_BIND_SERVICE, true}, // the network configuration may name a port below 1024
		// Legacy iptables loads ip_tables itself; the kernel loads other modules.
		{unix.CAP_SYS_MODULE, from == opening && firewall},
		{unix.CAP_MKNOD, tun.NodeMissing()},
		{unix.CAP_DAC_OVERRIDE, d.overrides != ""},
		{unix.CAP_DAC_READ_SEARCH, d.overrides != ""},
	} {
		if n.needed {
			needed |= capability.Of(n.capability)
		}
	}
	// The self-test of the kernel path creates network namespaces, and the BPF file system
	// may have to be mounted. SYS_ADMIN alone also implies the other two.
	programs := capability.Of(unix.CAP_BPF, unix.CAP_PERFMON)
	switch {
	case o.kernelPath == udp.KernelPathOff, from == running && d.kernelRefused != nil:
	case from == opening, !has.Has(programs):
		needed |= programs | capability.Of(unix.CAP_SYS_ADMIN)
	default:
		needed |= programs
	}
	return needed & has
}

// files returns the files that the options name.
func (o *options) files() *capability.Files {
	f := &capability.Files{WriteIn: []string{filepath.Dir(o.subnetFile), filepath.Dir(o.controlSocket)}}
	switch {
	case o.leaseFile != "":
		f.Read = []string{o.leaseFile, filepath.Dir(o.leaseFile)}
	case o.kube.on:
		f.Read = []string{o.kube.Kubeconfig, o.kube.ConfigFile}
	default:
		f.Read = []string{o.etcd.CAFile, o.etcd.CertFile, o.etcd.KeyFile}
		if o.embedded.on {
			f.WriteIn = append(f.WriteIn, o.embedded.dir)
		}
	}
	return f
}

// dropPrivileges gives up what the daemon does not need when it starts, and makes sure
// that no program that it runs gains privileges. A failure is logged, but does not end the
// daemon.
func (d *daemon) dropPrivileges() {
	if !d.options.dropPrivileges {
		return
	}
	d.overrides = d.options.files().NeedOverride()
	if err := capability.NoNewPrivileges(); err != nil {
		d.privilegesKept(err)
		return
	}
	d.keepOnly(opening)
	d.opened = func() { d.keepOnly(running) }
}

// keepOnly gives up the capabilities that the daemon does not need from the stage on.
func (d *daemon) keepOnly(from stage) {
	has, err := capability.Permitted()
	var left capability.Set
	if err == nil {
		left, err = d.needs(from, has).Keep()
	}
	if err != nil {
		d.privilegesKept(err)
	} else if left != has {
		d.log.Debug("capabilities given up", logging.KeyWas, has, logging.KeyNow, left)
	}
}

func (d *daemon) privilegesKept(err error) {
	d.log.Warn("cannot drop all unneeded privileges", logging.KeyError, err,
		logging.KeyRemedy, "correct the cause, or start twilld with --drop-privileges=false")
}

// privileges describes the privileges of this process.
func privileges() *status.Privileges {
	has, err := capability.Permitted()
	if err != nil {
		return nil
	}
	return &status.Privileges{Capabilities: has.Names(), NoNewPrivileges: capability.HasNoNewPrivileges()}
}
