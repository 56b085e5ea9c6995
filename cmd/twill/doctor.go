package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/etcd"
	"github.com/twillnet/twill/lease/static"
)

const aboutDoctor = `Looks at this node for what keeps its pods from talking to those of other nodes:
kernel, TUN device, sysctls, firewall, the path to each peer (pings that must not
be fragmented, and pings through the tunnel), leases, clock. For what is wrong it
prints the command that mends it. It changes nothing. Run it as root.

Exit code: 0 if nothing is bad, 1 if something is.`

// errSick makes the exit code 1. What is wrong has been printed.
var errSick = errors.New("doctor: something is bad, see above")

func runDoctor(ctx context.Context, call *command.Call) error {
	c := newEtcdCommand(call)
	c.Stderr = io.Discard // what the store warns of, a finding says
	asJSON := c.Bool("json", false, "print JSON instead of lines")
	socket := c.String("socket", status.DefaultSocket, "`PATH` of twilld's --control-socket")
	leaseFile := c.String("lease-file", "", "`FILE` with the leases, instead of etcd (default: that of the running twilld)")
	subnetFile := c.String("subnet-file", "/run/flannel/subnet.env", "`FILE` that twilld writes for CNI plugins")
	forward := c.Bool("iptables-forward-rules", true, "twilld runs with this flag; a running one tells itself")
	orderly := c.Bool("ip-masq-fully-random-disable", false, "twilld runs with this flag; a running one tells itself")
	if _, help, err := c.parse(aboutDoctor, ""); help || err != nil {
		return err
	}
	n := doctor.Node{Forward: *forward, RandomFully: !*orderly}
	asking, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	n.Daemon, n.DaemonErr = status.Fetch(asking, *socket)
	n.Env, n.EnvErr = lease.ReadSubnetEnv(*subnetFile)
	if *leaseFile == "" && n.Daemon != nil {
		if path, ok := strings.CutPrefix(n.Daemon.Source.Name, "file "); ok {
			*leaseFile = path
		}
	}
	if *leaseFile != "" {
		n.Config, n.Leases, n.StoreErr = fileLeases(ctx, *leaseFile)
	} else {
		n.StoreErr = c.ask(ctx, func(ctx context.Context, s *etcd.Store) (err error) {
			if n.Config, err = s.Config(ctx); err == nil {
				n.Leases, err = s.Leases(ctx)
			}
			return err
		})
	}
	findings := doctor.Examine(ctx, n)
	worst := doctor.Worst(findings)
	var err error
	if *asJSON {
		e := json.NewEncoder(c.Stdout)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false) // remedies are to be copied
		err = e.Encode(struct {
			Level    doctor.Level     `json:"level"`
			Findings []doctor.Finding `json:"findings"`
		}{worst, findings})
	} else {
		err = doctor.Write(c.Stdout, findings)
	}
	if err == nil && worst == doctor.Bad {
		err = errSick
	}
	return err
}

// fileLeases reads a lease file as it is now.
func fileLeases(ctx context.Context, path string) (*lease.Config, []lease.Lease, error) {
	s, err := static.Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, err
	}
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	updates := make(chan lease.Update)
	ended := make(chan error, 1)
	go func() { ended <- s.Watch(watching, updates) }()
	select {
	case u := <-updates: // the first is a snapshot with the config
		cancel()
		<-ended
		return u.Config, u.Put, u.Err
	case err := <-ended:
		return nil, nil, fmt.Errorf("read %s: %w", path, err)
	}
}
