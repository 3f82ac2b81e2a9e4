"""The relay's own services on grpcio, behind the data plane: health, reflection, admin; and the HTTP port."""
