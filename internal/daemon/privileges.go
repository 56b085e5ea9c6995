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

// A twilld that root starts has every capability and needs few. It gives the others up
// twice: when it starts, and what only opening needed once the node is ready for the first
// time. What a changed network configuration may need stays, since the data plane is
// opened again then; what needs other flags is a new process with rights of its own.

// stage is the part of a run that capabilities are needed for.
type stage int

const (
	opening stage = iota // until the node is ready for the first time
	running
)

// needs returns the capabilities that the daemon needs of those it has, from the stage on.
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
		// Legacy iptables loads ip_tables by itself, other modules are loaded by the kernel.
		{unix.CAP_SYS_MODULE, from == opening && firewall},
		{unix.CAP_MKNOD, tun.NodeMissing()},
		{unix.CAP_DAC_OVERRIDE, d.overrides != ""},
		{unix.CAP_DAC_READ_SEARCH, d.overrides != ""},
	} {
		if n.needed {
			needed |= capability.Of(n.capability)
		}
	}
	// The self-test of the kernel path makes network namespaces, and the BPF file system may
	// have to be mounted. On its own SYS_ADMIN also stands for the other two.
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
// that no program that it runs gains privileges. What cannot be given up is reported, and no
// reason to end.
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

// privileges describes what the process may do.
func privileges() *status.Privileges {
	has, err := capability.Permitted()
	if err != nil {
		return nil
	}
	return &status.Privileges{Capabilities: has.Names(), NoNewPrivileges: capability.HasNoNewPrivileges()}
}
