package daemon

import (
	"cmp"
	"context"
	"net/netip"

	"github.com/twillnet/twill/lease/kube"
	"github.com/twillnet/twill/lease/lastknown"
	"github.com/twillnet/twill/metrics"
)

// kubernetes holds the flags for a store in Kubernetes.
type kubernetes struct {
	on bool
	kube.Options
}

// notBuilt is the error text in a build without Kubernetes support.
const notBuilt = "this program was built without Kubernetes (make build-lite); use the full build"

// check finds errors that do not depend on the cluster.
func (k *kubernetes) check(leaseFile string, embedded bool) error {
	switch {
	case !k.on:
		return nil
	case !kube.Built:
		return usagef("--kube-subnet-mgr: %s", notBuilt)
	case leaseFile != "":
		return usagef("--kube-subnet-mgr: leases come either from Kubernetes or from --lease-file; omit one")
	case embedded:
		return usagef("--kube-subnet-mgr: leases come either from Kubernetes or from --embedded-etcd; omit one")
	}
	if err := k.CheckNode(); err != nil {
		return usagef("--kube-subnet-mgr: %v", err)
	}
	if err := k.Check(); err != nil {
		return usagef("--kube-annotation-prefix: %v", err)
	}
	return nil
}

// source names the lease store, as shown in the status.
func (k *kubernetes) source() string {
	switch {
	case k.APIURL != "":
		return "Kubernetes " + k.APIURL
	case k.Kubeconfig != "":
		return "Kubernetes of " + k.Kubeconfig
	}
	return "Kubernetes"
}

// openKube opens the store in Kubernetes, backed by the last known state in case the
// API does not answer.
func (d *daemon) openKube() (*lastknown.Store, error) {
	o := d.options.kube.Options
	o.Logger = d.log
	s, err := kube.Open(o)
	if err != nil {
		return nil, err
	}
	d.ready = s.Ready
	d.kubernetes = s
	d.letRead(s)
	return d.withLastKnown(s), nil
}

// keepEvents makes the store, if it is Kubernetes, record the Events of this node until
// ctx is done. end waits until it has ended.
func (d *daemon) keepEvents(ctx context.Context) (end func()) {
	s := d.kubernetes
	if s == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.KeepEvents(ctx, func() []kube.Event {
			doc := d.state.document()
			return eventsOf(&doc)
		})
	}()
	return func() {
		cancel()
		<-done
	}
}

// withLastKnown lets the daemon start with the last known state if source does
// not answer.
func (d *daemon) withLastKnown(source lastknown.Source) *lastknown.Store {
	s := lastknown.Open(source, lastknown.Options{
		Path:    d.options.leasesFile(),
		Waiting: func(why error) { d.state.waitFor(metrics.WaitLease, "a lease: "+why.Error()) },
		Logger:  d.log,
	})
	d.nodeAddrs = s.NodeAddrs
	d.state.watchStore(s)
	return s
}

// chosenAddrs returns the addresses by which the interface is chosen: those that
// the store has for this node, or else those of the flags.
func (d *daemon) chosenAddrs() (ipv4, ipv6 netip.Addr) {
	if d.nodeAddrs != nil {
		ipv4, ipv6, _ = d.nodeAddrs(context.Background()) // an error will be reported again by Acquire
	}
	return cmp.Or(ipv4, d.options.publicIP), cmp.Or(ipv6, d.options.publicIPv6)
}
