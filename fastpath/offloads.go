package fastpath

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/echo"
	"github.com/twillnet/twill/tun"
)

// openProber lets the engine look for black holes.
func (e *Engine) openProber(log *slog.Logger) (granted string, err error) {
	sockets, err := echo.OpenSockets()
	if err != nil {
		return "", err
	}
	e.paths.probes = newProber(sockets, log)
	for _, s := range e.shards {
		s.probeID, s.floor = sockets.ID(), e.paths.floor
	}
	return "granted: raw ICMP sockets", nil
}

// separate gives each shard a source port of its own.
func (e *Engine) separate(cfg *Config, local netip.AddrPort) (granted string, err error) {
	if len(e.shards) == 1 {
		return "", errors.New("the device has only one queue")
	}
	fds, err := cfg.senders(local.Addr())
	if err != nil {
		return "", err
	}
	receivers := make([]int, len(e.shards))
	for i, s := range e.shards {
		s.sendFD, receivers[i] = fds[i], s.fd
	}
	granted = fmt.Sprintf("granted: %d ports", len(fds))
	if err := steer(receivers, local); err != nil {
		granted += fmt.Sprintf("; the kernel's hash alone distributes peers' ports: %v", err)
	}
	return granted, nil
}

// probe determines which offloads the kernel supports and configures the shards. sink
// is an inherited sink of the stranger filter, or -1.
func (e *Engine) probe(cfg *Config, sink int) error {
	ipv6 := e.shards[0].local.Is6()
	segments := 1
	inForce := make(map[string]bool, len(SwitchFlags))
	probes := map[string]func() (granted string, err error){
		"tun-gro":     func() (string, error) { return probeMerge(cfg.Device) },
		"tun-gro-udp": func() (string, error) { return probeMergeUDP(cfg.Device) },
		"udp-gso": func() (string, error) {
			if err := probeGSO(ipv6); err != nil {
				return "", err
			}
			if segments = maxSegmentsOld; featureGSO128.Probe() == nil {
				segments = maxSegments
			}
			return fmt.Sprintf("granted: UDP_SEGMENT, %d segments per send", segments), nil
		},
		"udp-gro": func() (string, error) {
			for _, s := range e.shards {
				if err := enableGRO(s.fd); err != nil {
					return "", err
				}
			}
			return "granted: UDP_GRO", nil
		},
		"partial-checksums": func() (string, error) {
			if !cfg.PartialAnnounced {
				return "", errors.New("the lease of this node does not announce it in BackendData")
			}
			return "granted: with peers whose leases announce it", nil
		},
		"source-ports": func() (string, error) {
			return e.separate(cfg, netip.AddrPortFrom(e.shards[0].local, cfg.Local.Port()))
		},
		strangerFilter: func() (string, error) { return e.filter(cfg, sink, inForce["udp-gro"]) },
		"busy-poll":    probeSpin,
		"bulk-queue": func() (string, error) {
			return fmt.Sprintf("granted: %d of %d queues", e.pairs, len(e.shards)), e.severalQueues()
		},
		"brief-batches": func() (string, error) {
			return fmt.Sprintf("granted: %d KiB or %d messages per batch beside requests", briefBytes>>10, briefMessages), e.severalQueues()
		},
		"mtu-probes": func() (string, error) { return e.openProber(cfg.Logger) },
	}
	for _, f := range SwitchFlags {
		state := cfg.Device.State
		if f.Name != tunOffload {
			var err error
			if state, err = f.Field(&cfg.Switches).Resolve(f.Name, probes[f.Name]); err != nil {
				return err
			}
		}
		e.states = append(e.states, state)
		inForce[f.Name] = state.InForce
	}
	e.trains = inForce["udp-gro"]
	if inForce["busy-poll"] {
		e.spinSlots.Store(int32(spinThreads()))
	}
	e.lanes = inForce["bulk-queue"]
	e.brief = inForce["brief-batches"]
	e.paths.separated = inForce["source-ports"]
	for _, s := range e.shards {
		s.segments = segments
		s.takesPartial, s.leavesPartial = cfg.PartialAnnounced, inForce["partial-checksums"]
		s.mergeTCP = inForce["tun-gro"]
		s.mergeUDP = inForce["tun-gro-udp"]
		if inForce["udp-gso"] {
			s.sender = newMmsgSender(newOutlets(s.sendFD, s.fd, ipv6))
			continue
		}
		s.sender = newBatchSender(newOutlets(s.sendFD, s.fd, ipv6), s.local)
	}
	return nil
}

// severalQueues returns an error if each thread has only one queue.
func (e *Engine) severalQueues() error {
	if len(e.shards) == e.pairs {
		return errors.New("each thread has only one queue")
	}
	return nil
}

// Offloads returns the current state of each offload.
func (e *Engine) Offloads() []tun.Offload {
	states := append([]tun.Offload(nil), e.states...)
	for i := range states {
		if st := &states[i]; st.Name == strangerFilter && st.InForce {
			var err error
			if st.Why, err = e.strangers.state(); err != nil {
				st.InForce, st.Why = false, "refused at run time: "+err.Error()
			}
		}
	}
	for _, s := range e.shards {
		for i := range states {
			st := &states[i]
			switch errno := unix.Errno(s.gsoRefused.Load()); {
			case st.Name == "udp-gso" && errno != 0:
				st.InForce = false
				st.Why = fmt.Sprintf("refused at run time: sendmsg on shard %d of %d: %v", s.index+1, len(e.shards), errno)
			case (st.Name == "tun-gro" || st.Name == "tun-gro-udp") && st.InForce && s.mergeRefused.Load():
				st.InForce = false
				st.Why = fmt.Sprintf("refused at run time: write on shard %d of %d: %v", s.index+1, len(e.shards), unix.EINVAL)
			}
		}
	}
	return states
}
