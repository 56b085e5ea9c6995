package daemon

import (
	"fmt"
	"slices"
	"strings"

	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease/kube"
	"github.com/twillnet/twill/metrics"
)

// Reasons of the Events that are recorded in Kubernetes. They are stable, since
// administrators filter by them; docs/kubernetes.md explains each.
const (
	eventReady        = "NetworkReady"
	eventNotReady     = "NetworkNotReady"
	eventNoLease      = "NoLease"
	eventConfig       = "NetworkConfigRefused"
	eventRestart      = "RestartNeeded"
	eventConflict     = "LeaseConflict"
	eventFallback     = "BackendFallback"
	eventPeersSilent  = "PeersUnreachable"
	eventPeersLimited = "PathTooNarrow"
	eventNoBackend    = "NoBackendForPeers"
)

// eventsOf derives, from the status of a node, the Events that currently hold. They do not
// include anything that changes with every packet.
func eventsOf(d *status.Document) (all []kube.Event) {
	warn := func(reason, message string) {
		if message != "" {
			all = append(all, kube.Event{Reason: reason, Message: message})
		}
	}
	switch metrics.WaitOf(d.WaitingReason) {
	case metrics.Ready:
		all = append(all, kube.Event{Reason: eventReady, Message: readyMessage(d), Normal: true})
	case metrics.WaitLease:
		warn(eventNoLease, "the node is waiting for "+d.Waiting)
	case metrics.WaitConfig:
		warn(eventConfig, "the node is waiting for "+d.Waiting)
	default:
		warn(eventNotReady, "the node is waiting for "+d.Waiting)
	}
	warn(eventRestart, d.Restart)
	if n := d.Source.Conflicts; n > 0 {
		warn(eventConflict, fmt.Sprintf("%d leases overlap others and are not used: %s", n, d.Source.ConflictsWhy))
	}
	if d.Backend == "auto" && len(d.Backends) > 0 && !slices.Contains(d.Backends, "vxlan") {
		all = append(all, kube.Event{Reason: eventFallback, Message: fmt.Sprintf("%s is used: %s", strings.Join(d.Backends, ", "), d.BackendWhy), Normal: true})
	}
	if d.Dataplane != nil {
		peers := d.Dataplane.Peers
		warn(eventPeersSilent, describePeers(peers, "do not answer probes", func(p *status.Peer) bool {
			return p.Probe != nil && p.Probe.Sent >= fewestProbes && p.Probe.Loss == 1
		}))
		warn(eventPeersLimited, describePeers(peers, "receive only packets smaller than the device's MTU, without an ICMP error (see twill status)", func(p *status.Peer) bool {
			return p.MTU > 0
		}))
		warn(eventNoBackend, describeUnreached(d.Dataplane.Unreached))
	}
	return all
}

// describeUnreached describes subnets that no packets are sent to, with the reason for the
// first; "" if there are none.
func describeUnreached(all []status.Unreached) string {
	if len(all) == 0 {
		return ""
	}
	const longest = 300 // bytes of a reason, which may include text from the other node
	u := all[0]
	why := u.Why
	if len(why) > longest {
		why = strings.ToValidUTF8(why[:longest], "") + "…"
	}
	return fmt.Sprintf("no packets are sent to %d subnets of other nodes (see twill status), the first: %s of %s: %s", len(all), u.Subnet, u.PublicIP, why)
}

// fewestProbes is the number of probes of a peer from which on their loss counts.
const fewestProbes = 3

// readyMessage describes the network of a node that is ready.
func readyMessage(d *status.Document) string {
	text := "pods can communicate"
	for _, p := range d.Lease.Subnets() {
		text += ", " + p.String()
	}
	if len(d.Backends) > 0 {
		text += ", by " + strings.Join(d.Backends, " and ")
	}
	return text
}

// describePeers names the first few of the affected peers; "" if there are none.
func describePeers(peers []status.Peer, what string, affected func(*status.Peer) bool) string {
	const few = 3
	n, names := 0, []string(nil)
	for i := range peers {
		if !affected(&peers[i]) {
			continue
		}
		if n++; n <= few {
			names = append(names, fmt.Sprintf("%s %v", peers[i].PublicIP, peers[i].Subnets))
		}
	}
	if n == 0 {
		return ""
	}
	if n > few {
		names = append(names, fmt.Sprintf("and %d more", n-few))
	}
	return fmt.Sprintf("%d of %d peers %s: %s", n, len(peers), what, strings.Join(names, ", "))
}
