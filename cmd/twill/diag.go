package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/diag"
	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/status"
)

const aboutDiag = `Packs what a bug report about this node needs into one archive: status and doctor's page,
network config and leases, subnet.env, interfaces, routes, firewall, sysctls, counters
twice at an interval, and the log of the last days. It lists what it takes. Passwords and
keys are left out; addresses, firewall rules and the log are not, so look at the archive
(tar --zstd -xf FILE) before you make it public. It changes nothing. Run it as root.`

func runDiag(ctx context.Context, call *command.Call) error {
	d := newDoctorCommand(call)
	out := call.String("o", "", "archive to write, `FILE` (default: twill-diag-HOST-TIME.tar.zst); - for standard output")
	unit := call.String("unit", "twilld.service", "systemd `UNIT` of the daemon, for its state and log")
	interval := call.Duration("interval", 10*time.Second, "`TIME` between the two readings of the counters")
	if _, help, err := d.parse(ctx, aboutDiag, ""); help || err != nil {
		return err
	}
	if *interval <= 0 || *interval > time.Minute {
		return call.Usagef("--interval %s: want more than 0 and at most 1m", *interval)
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	dir := fmt.Sprintf("twill-diag-%s-%s", host, time.Now().UTC().Format("20060102-150405"))
	parts := d.diagnosis(*unit, *interval)
	if *out == "-" {
		return diag.Pack(ctx, call.Stdout, dir, parts, call.Stderr)
	}
	path := cmp.Or(*out, dir+".tar.zst")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("diag: %w; remove it, or choose another name with -o", err)
	}
	if err != nil {
		return fmt.Errorf("diag: %w", err)
	}
	err = errors.Join(diag.Pack(ctx, f, dir, parts, call.Stdout), f.Close())
	if err != nil {
		_ = os.Remove(path) // half an archive
		return err
	}
	_, err = fmt.Fprintln(call.Stdout, "written to", path)
	return err
}

// diagnosis returns the parts of the archive.
func (c *doctorCommand) diagnosis(unit string, interval time.Duration) []diag.Part {
	read := func(ctx context.Context) ([]byte, error) { return status.FetchJSON(ctx, c.socket) }
	parts := []diag.Part{
		{Name: "status.json", What: "what the daemon says of itself", Read: read},
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
