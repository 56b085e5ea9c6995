package cni

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// gc ends the attachments to this network that the runtime no longer lists: for
// each it calls the delegate's DEL and then removes the saved configuration. The
// delegate is also called with GC and the same list.
func (p *plugin) gc(args *skel.CmdArgs) error {
	conf, err := parseNetConf(args.StdinData)
	if err != nil {
		return err
	}
	errs := []error{p.collect(conf, args.Path)}
	d, err := conf.present()
	if err == nil {
		d["cni.dev/valid-attachments"] = encode(conf.ValidAttachments)
		err = p.run(d, call("GC", args))
	}
	if err := errors.Join(append(errs, err)...); err != nil {
		return coded(types.ErrTryAgainLater, err)
	}
	return nil
}

// collect continues after an error and returns all errors at the end.
func (p *plugin) collect(conf *netConf, path string) error {
	dir := stateDir(conf.DataDir)
	files, err := dir.files()
	errs := []error{err}
	for _, file := range files {
		s, err := dir.read(file)
		if err != nil {
			// Its network is unknown; a DEL of that container handles it.
			if !errors.Is(err, os.ErrNotExist) {
				fmt.Fprintf(p.stderr, "flannel: ignored: %v\n", err)
			}
			continue
		}
		if s.network != conf.Name || conf.valid(attachmentOf(file), s.byStock) {
			continue
		}
		errs = append(errs, p.end(dir, file, s, path))
	}
	return errors.Join(errs...)
}

// valid reports whether the runtime still has the attachment. Files written by the
// stock plugin identify only the container.
func (n *netConf) valid(a attachment, byStock bool) bool {
	return slices.ContainsFunc(n.ValidAttachments, func(v types.GCAttachment) bool {
		return v.ContainerID == a.container && (byStock || v.IfName == a.ifName)
	})
}

// end performs the DEL of an attachment whose container and network namespace
// are gone.
func (p *plugin) end(dir stateDir, file string, s saved, path string) error {
	a := attachmentOf(file)
	err := p.run(s.delegate, &invoke.Args{Command: "DEL", ContainerID: a.container, IfName: a.ifName, Path: path})
	if err != nil {
		return fmt.Errorf("container %s, interface %s: %w", a.container, a.ifName, err)
	}
	return dir.remove(file)
}
