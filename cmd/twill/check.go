package main

import (
	"context"
	"errors"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/status"
)

const aboutCheck = `Examines a host before twilld is installed: interface, kernel, TUN device, ports,
forwarding, firewall programs, clock. For each fault it prints the command that repairs
it. It briefly creates a VXLAN device, and changes nothing else. Run it as root. If twilld
is already running, use twill doctor; to check a twilld command line, use twilld --check.

Exit code: 0 if nothing is bad, 1 if something is.`

// backendsOf are the backends for each value of --backend.
var backendsOf = map[string][]backend.Kind{
	"auto":    {backend.VXLAN, backend.UDP},
	"vxlan":   {backend.VXLAN},
	"udp":     {backend.UDP},
	"host-gw": {backend.HostGW},
}

func runCheck(ctx context.Context, call *command.Call) error {
	asJSON := call.Bool("json", false, "print JSON instead of lines")
	name := call.String("backend", "auto", "`BACKEND` to check for: auto (vxlan or udp), vxlan, udp or host-gw")
	iface := call.String("iface", "", "`INTERFACE` that reaches the other nodes, by name or address (default: that of the default route)")
	kernelPath := call.Bool("kernel-path", false, "run the self-test that shows whether twilld --kernel-path=tc can be used")
	socket := call.String("socket", status.DefaultSocket, aboutSocket)
	if help, err := call.ParseFlags(aboutCheck); help || err != nil {
		return err
	}
	p := doctor.Plan{Backends: backendsOf[*name], Any: *name == "auto", KernelPath: *kernelPath}
	if p.Backends == nil {
		return call.Usagef("--backend %s: want auto, vxlan, udp or host-gw", *name)
	}
	if *iface != "" {
		p.Underlay = underlay.Options{Iface: []string{*iface}}
	}
	p.Daemon, _ = fetchStatus(ctx, *socket) // none runs, as a rule
	return report(call, doctor.Preflight(ctx, p), *asJSON)
}

// report prints findings. If one is bad it returns an error.
func report(call *command.Call, findings []doctor.Finding, asJSON bool) error {
	worst := doctor.Worst(findings)
	var err error
	if asJSON {
		err = writeJSON(call.Stdout, struct {
			Level    doctor.Level     `json:"level"`
			Findings []doctor.Finding `json:"findings"`
		}{worst, findings})
	} else {
		err = doctor.Write(call.Stdout, findings)
	}
	if err == nil && worst == doctor.Bad {
		err = errors.New(call.Name() + ": there are bad findings, see above")
	}
	return err
}
