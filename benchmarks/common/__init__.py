"""What every benchmark needs: processes, figures, facts of the machine, a running server."""
