package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/diag"
	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/status"
)

const aboutDiag = `Packs what a bug report about this node needs into one archive: status, doctor's findings,
network config and leases, subnet.env, interfaces, routes, firewall, sysctls, two readings
of the counters, and the end of the log. It lists what it collects. Passwords and keys are
left out; addresses, firewall rules and the log are not, so review the archive (tar --zstd
-xf FILE) before you publish it. It changes nothing. Run it as root.

With --all it runs on every node, through --via, and writes one archive with a directory
for each. It names the nodes on which doctor finds something bad.

Exit code: 0 if the archive is complete, 1 if not, 2 for a wrong command line.`

// diagCommand is the subcommand.
type diagCommand struct {
	*fleetCommand
	out, unit string
	interval  time.Duration
	all       bool

	missing int // nodes whose archives are missing or not whole
}

func runDiag(ctx context.Context, call *command.Call) error {
	c := &diagCommand{fleetCommand: newFleetCommand(call)}
	c.StringVar(&c.out, "o", "", "archive to write, `FILE` (default: twill-diag-HOST-TIME.tar.zst); - for standard output")
	c.StringVar(&c.unit, "unit", "twilld.service", "systemd `UNIT` of the daemon, for its state and log")
	c.DurationVar(&c.interval, "interval", 10*time.Second, "`TIME` between the two readings of the counters")
	c.BoolVar(&c.all, "all", false, "pack the archives of all nodes into one; needs --via")
	if _, help, err := c.parse(ctx, aboutDiag+aboutVia, ""); help || err != nil {
		return err
	}
	if err := c.readVia(); err != nil {
		return err
	}
	switch {
	case c.interval <= 0 || c.interval > time.Minute:
		return call.Usagef("--interval %s: want more than 0 and at most 1m", c.interval)
	case c.all && !c.via.IsSet():
		return call.Usagef("--all needs --via, the command that runs twill on the other nodes: --via 'ssh root@{node} twill'")
	case !c.all && (c.via.IsSet() || c.nodes != ""):
		return call.Usagef("--via and --nodes need --all")
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	if c.all {
		host = "all"
	}
	dir := fmt.Sprintf("twill-diag-%s-%s", host, time.Now().UTC().Format("20060102-150405"))
	if c.out == "-" {
		err = c.pack(ctx, call.Stdout, dir, call.Stderr)
	} else {
		err = c.packFile(ctx, cmp.Or(c.out, dir+".tar.zst"), dir)
	}
	if err == nil && c.missing > 0 {
		err = fmt.Errorf("diag: %d archives missing or incomplete, see above", c.missing)
	}
	return err
}

// packFile writes the archive to a file that does not exist yet.
func (c *diagCommand) packFile(ctx context.Context, path, dir string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("diag: %w; remove it, or choose another name with -o", err)
	}
	if err != nil {
		return fmt.Errorf("diag: %w", err)
	}
	err = errors.Join(c.pack(ctx, f, dir, c.Stdout), f.Close())
	if err != nil {
		_ = os.Remove(path) // half an archive
		return err
	}
	_, err = fmt.Fprintln(c.Stdout, "written to", path)
	return err
}

// pack writes the archive of this node or, with --all, of all nodes.
func (c *diagCommand) pack(ctx context.Context, w io.Writer, dir string, progress io.Writer) error {
	if c.all {
		return c.packAll(ctx, w, dir, progress)
	}
	return diag.Pack(ctx, w, dir, c.diagnosis(c.unit, c.interval), progress)
}

// diagnosis returns the parts of the archive.
func (c *diagCommand) diagnosis(unit string, interval time.Duration) []diag.Part {
	read := func(ctx context.Context) ([]byte, error) { return status.FetchJSON(ctx, c.socket) }
	parts := []diag.Part{
		{Name: "status.json", What: "the daemon's own status", Read: read},
		{Name: "doctor.txt", What: "doctor's findings", Wait: time.Minute, Read: func(ctx context.Context) ([]byte, error) {
			var page bytes.Buffer
			err := doctor.Write(&page, doctor.Examine(ctx, c.node(ctx)))
			return page.Bytes(), err
		}},
		{Name: "config.json", What: "network config", Read: func(ctx context.Context) ([]byte, error) {
			config, err := c.config(ctx)
			return indented(config, err)
		}},
		{Name: "leases.json", What: "leases", Read: func(ctx context.Context) ([]byte, error) {
			leases, err := c.leases(ctx)
			return indented(leases, err)
		}},
		diag.File("subnet.env", "what CNI plugins read", c.subnetPath()),
	}
	if c.daemon != nil {
		parts = append(parts, diag.Process(c.daemon.PID)...)
	}
	parts = append(parts, diag.Host(unit)...)
	return append(parts, diag.Part{
		Name: "status-later.json", What: fmt.Sprintf("counters again, %s later", interval), Wait: interval, Read: func(ctx context.Context) ([]byte, error) {
			select {
			case <-time.After(interval):
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
			return read(ctx)
		},
	})
}

func indented(v any, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(v, "", "  ")
}
