// Package cni is the CNI plugin "flannel": it builds a configuration for
// another plugin, the delegate, from its own configuration and the subnet file
// that the daemon writes, and runs that plugin.
//
//	stdin: NetConf ─┐
//	                ├─► delegate's configuration ─► saved ─► bridge ADD ─► result
//	subnet.env ─────┘                                 │
//	                                                  └────► bridge DEL, CHECK
//
// The configuration is saved for each attachment (a container and the name of its
// interface), because at DEL the subnet file may be gone or have changed. The saved
// file is removed only after the delegate's DEL has succeeded, so that the runtime
// can call DEL again.
//
// This follows the CNI specification 1.1.0 and flannel's cni-plugin v1.9.1.
package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// delegateTimeout bounds a delegate's run. The kubelet waits two minutes for a
// runtime (--runtime-request-timeout): a delegate that hangs must be reported,
// and undone, before that.
const delegateTimeout = 100 * time.Second

// plugin is one invocation of the program.
type plugin struct {
	exec   invoke.Exec
	stdout io.Writer // for the result
	stderr io.Writer // for anything that is neither result nor error; the runtime logs it
}

// Main runs the plugin as the CNI specification prescribes: the command and its
// arguments in the environment, a network configuration on standard input, a
// result or an error as JSON on standard output. Without CNI_COMMAND it writes
// about to standard error. It returns the exit code.
func Main(about string) int {
	p := &plugin{
		exec:   &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}},
		stdout: os.Stdout,
		stderr: os.Stderr,
	}
	failure := skel.PluginMainFuncsWithError(p.funcs(), version.All, about)
	if failure == nil {
		return 0
	}
	if err := failure.Print(); err != nil {
		fmt.Fprintln(os.Stderr, "write error to stdout:", err)
	}
	return 1
}

func (p *plugin) funcs() skel.CNIFuncs {
	return skel.CNIFuncs{Add: p.add, Del: p.del, Check: p.check, Status: p.status, GC: p.gc}
}

// add attaches the container. If the delegate fails, its DEL releases what it had
// allocated, such as an address.
func (p *plugin) add(args *skel.CmdArgs) error {
	conf, err := parseNetConf(args.StdinData)
	if err != nil {
		return err
	}
	node, err := readNode(conf.SubnetFile)
	if err != nil {
		return coded(types.ErrTryAgainLater, err)
	}
	d, err := conf.delegateFor(node)
	if err != nil {
		return err
	}
	path, err := p.find(d)
	if err != nil {
		return err
	}
	saved := stateDir(conf.DataDir)
	at := attachment{args.ContainerID, args.IfName}
	if err := saved.save(at, d); err != nil {
		return coded(types.ErrIOFailure, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), delegateTimeout)
	defer cancel()
	result, err := invoke.ExecPluginWithResult(ctx, path, d.text(), call("ADD", args), p.exec)
	if err != nil {
		err = inDelegate(d, "ADD", err)
		undo := p.run(d, call("DEL", args))
		if undo == nil {
			undo = saved.remove(at.fileName())
		}
		if undo != nil {
			fmt.Fprintf(p.stderr, "flannel: cannot undo a failed ADD, the next DEL has to: %v\n", undo)
		}
		return err
	}
	return result.PrintTo(p.stdout)
}

// del detaches the container. It is idempotent, as the runtime may repeat DEL.
func (p *plugin) del(args *skel.CmdArgs) error {
	conf, err := parseNetConf(args.StdinData)
	if err != nil {
		return err
	}
	saved := stateDir(conf.DataDir)
	at := attachment{args.ContainerID, args.IfName}
	d, file, err := saved.load(at, conf.Name)
	var bad *malformedError
	switch {
	case errors.Is(err, os.ErrNotExist):
		// It was detached before, or its ADD was killed before a delegate ran.
		return saved.remove(unfinished(at.fileName()))
	case errors.As(err, &bad):
		// The configuration for an ADD now has the same network name, by which the
		// delegate's IPAM finds its addresses.
		fmt.Fprintf(p.stderr, "flannel: %v; using the current configuration\n", err)
		if d, err = conf.present(); err != nil {
			return coded(types.ErrTryAgainLater, fmt.Errorf("%w, and %s is damaged", err, filepath.Join(conf.DataDir, file)))
		}
	case err != nil:
		return coded(types.ErrIOFailure, err)
	}
	if err := p.run(conf.onCall(d), call("DEL", args)); err != nil {
		return err
	}
	if err := saved.remove(file); err != nil {
		return coded(types.ErrIOFailure, err)
	}
	return nil
}

// check verifies that the container is still attached as ADD left it, and that
// its addresses are in the node's present subnet.
func (p *plugin) check(args *skel.CmdArgs) error {
	conf, err := parseNetConf(args.StdinData)
	if err != nil {
		return err
	}
	d, _, err := stateDir(conf.DataDir).load(attachment{args.ContainerID, args.IfName}, conf.Name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return types.NewError(types.ErrUnknownContainer, fmt.Sprintf(
			"container %s, interface %s: %s has no saved attachment", args.ContainerID, args.IfName, conf.DataDir),
			"delete the pod, so that it is recreated")
	case err != nil:
		return coded(types.ErrIOFailure, err)
	}
	node, err := readNode(conf.SubnetFile)
	if err != nil {
		return coded(types.ErrPluginNotAvailable, err)
	}
	if err := node.has(d); err != nil {
		return err
	}
	return p.run(conf.onCall(d), call("CHECK", args))
}

// status reports whether an ADD could succeed now.
func (p *plugin) status(args *skel.CmdArgs) error {
	conf, err := parseNetConf(args.StdinData)
	if err != nil {
		return err
	}
	d, err := conf.present()
	if err != nil {
		return coded(types.ErrPluginNotAvailable, err)
	}
	if _, err := p.find(d); err != nil {
		return coded(types.ErrPluginNotAvailable, err)
	}
	return p.run(d, call("STATUS", args))
}

// call is the environment of a delegate: this plugin's own, with another
// command.
func call(command string, args *skel.CmdArgs) *invoke.Args {
	return &invoke.Args{
		Command: command, ContainerID: args.ContainerID, NetNS: args.Netns,
		IfName: args.IfName, PluginArgsStr: args.Args, Path: args.Path,
	}
}

// run calls a delegate for a command without a result.
func (p *plugin) run(d delegate, args *invoke.Args) error {
	path, err := p.find(d)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), delegateTimeout)
	defer cancel()
	err = invoke.ExecPluginWithoutResult(ctx, path, d.text(), args, p.exec)
	return inDelegate(d, args.Command, err)
}

// find returns the path of the delegate's program.
func (p *plugin) find(d delegate) (string, error) {
	dirs := os.Getenv("CNI_PATH")
	path, err := p.exec.FindInPath(d.plugin(), filepath.SplitList(dirs))
	if err != nil {
		return "", types.NewError(types.ErrInvalidNetworkConfig,
			fmt.Sprintf("there is no plugin %q in %s", d.plugin(), dirs),
			"install it, or name another plugin in delegate.type")
	}
	return path, nil
}

// inDelegate adds the delegate's name to err and keeps its code. It returns nil
// for nil.
func inDelegate(d delegate, command string, err error) error {
	if err == nil {
		return nil
	}
	var e *types.Error
	if !errors.As(err, &e) {
		e = &types.Error{Code: types.ErrInternal, Msg: err.Error()}
	}
	return types.NewError(e.Code, fmt.Sprintf("delegate %s %s: %s", d.plugin(), command, e.Msg), e.Details)
}

// coded gives err a code of the CNI specification, from which the runtime learns
// what failed and whether to retry.
func coded(code uint, err error) error {
	if e, ok := err.(*types.Error); ok {
		return types.NewError(code, e.Msg, e.Details)
	}
	return types.NewError(code, strings.ReplaceAll(err.Error(), "\n", "; "), "")
}
