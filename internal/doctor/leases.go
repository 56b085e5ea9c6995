package doctor

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
)

// store checks that the store answers and that its leases do not contradict
// each other.
func (x *examination) store(context.Context) []Finding {
	var e status.Explained
	switch {
	case errors.As(x.StoreErr, &e):
		cause, remedy := e.Explain()
		return []Finding{badf(remedy, "%s", cause)}
	case x.StoreErr != nil:
		return []Finding{badf("", "%v", x.StoreErr)}
	}
	var found []Finding
	for _, err := range lease.Check(x.Config, x.Leases) {
		found = append(found, badf("twill leases", "%v", err))
	}
	found = append(found, x.sharedVTEPs()...)
	if len(found) == 0 {
		found = append(found, okf("it answers; the network config and %d leases are valid", len(x.Leases)))
	}
	return found
}

// renewal is the time before expiration by which a lease should have been
// renewed. Flannel's default margin is an hour.
const renewal = 30 * time.Minute

// ownLease checks that the store has the lease that this node uses.
func (x *examination) ownLease(context.Context) []Finding {
	own := x.Env.Previous()
	if x.Daemon != nil && x.Daemon.Lease != nil {
		own = lease.Previous{Subnet: x.Daemon.Lease.Subnet, IPv6Subnet: x.Daemon.Lease.IPv6Subnet}
	}
	key := lease.Lease{Subnet: own.Subnet, IPv6Subnet: own.IPv6Subnet}.Key()
	switch {
	case !own.Subnet.IsValid() && !own.IPv6Subnet.IsValid():
		return []Finding{badf(startDaemon, "this node has no lease yet")}
	case x.StoreErr != nil:
		return []Finding{warnf("", "%s; the store did not answer whether it is still valid", key)}
	}
	for _, l := range x.Leases {
		if l.Key() != key {
			continue
		}
		if f, ok := foreignVTEP(l); ok {
			return []Finding{f}
		}
		left := time.Until(l.Expiration)
		d := x.Daemon
		switch {
		case d != nil && d.Lease != nil && (l.PublicIP != d.Lease.PublicIP || l.PublicIPv6 != d.Lease.PublicIPv6):
			return []Finding{badf("systemctl restart twilld", "%s is the lease of another node, %s", key, l.PublicIP)}
		case l.Expiration.IsZero():
			return []Finding{okf("%s, reserved", key)}
		case left < renewal:
			return []Finding{warnf("systemctl restart twilld", "%s expires in %s and was not renewed", key, left.Round(time.Second))}
		}
		return []Finding{okf("%s, %s left", key, left.Round(time.Minute))}
	}
	return []Finding{badf("systemctl restart twilld", "%s is no longer in the store; another node may take it", key)}
}

// subnetFile checks that the file for CNI plugins agrees with the daemon.
func (x *examination) subnetFile(context.Context) []Finding {
	d := x.Daemon
	switch {
	case errors.Is(x.EnvErr, fs.ErrNotExist) && d != nil:
		return []Finding{badf("systemctl restart twilld", "%v: CNI plugins cannot set up pods", x.EnvErr)}
	case x.EnvErr != nil:
		return []Finding{badf(startDaemon, "%v: CNI plugins cannot set up pods", x.EnvErr)}
	case d != nil && d.Lease != nil && (d.Lease.Subnet != x.Env.Subnet || d.Lease.IPv6Subnet != x.Env.IPv6Subnet):
		return []Finding{badf("systemctl restart twilld", "it has %s, but the lease is %s: new pods get wrong addresses", x.Env.Subnet, d.Lease.Subnet)}
	case x.dataplane() != nil && x.dataplane().MTU() < x.Env.MTU:
		return []Finding{badf("systemctl restart twilld", "it has MTU %d, but the device has %d", x.Env.MTU, x.dataplane().MTU())}
	}
	return []Finding{okf("subnet %s, MTU %d", x.Env.Subnet, x.Env.MTU)}
}
