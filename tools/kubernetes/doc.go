// Package kubernetes has no code. Its module pins, by the tool lines of go.mod, the
// Kubernetes programs that tests run, and keeps all that they need out of the
// root module. "make kubernetes" builds them. To change the version, replace it in
// the require line and, as v0 in place of v1, in each replace line, which must name
// what k8s.io/kubernetes has in staging; then run
//
//	go mod tidy -C tools/kubernetes
package kubernetes
