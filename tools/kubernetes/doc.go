// Package kubernetes has no code. The tool lines of its go.mod pin the
// Kubernetes programs that tests run, and its module keeps their dependencies out of the
// root module. "make kubernetes" builds them. To change the version, replace it in
// the require line and, as v0 in place of v1, in each replace line, which must list
// what k8s.io/kubernetes has in staging; then run
//
//	go mod tidy -C tools/kubernetes
package kubernetes
