#!/bin/sh
# flannel's script of this name, implemented by the program that does the same.
exec twill docker-opts "$@"
